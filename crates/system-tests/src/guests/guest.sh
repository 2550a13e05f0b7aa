#!/bin/busybox sh
# The first program of a guest. What it says begins with GUEST; it takes its orders from the console.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run

# Every PCI function: address, ids, driver, DMA channels; the interrupts of their drivers; errors.
report() {
    for function in /sys/bus/pci/devices/*; do
        driver=none
        [ -e "$function/driver" ] && driver=$(basename "$(readlink "$function/driver")")
        channels=$(ls "$function/dma" 2>/dev/null | wc -l)
        echo "GUEST pci $(basename "$function") $(cat "$function/vendor") $(cat "$function/device") $driver $channels"
    done
    grep ioat /proc/interrupts | while read -r line; do echo "GUEST irq $line"; done
    dmesg | grep -i -e ioat -e idxd -e 'self-test' | while read -r line; do echo "GUEST log $line"; done
    dmesg -r | grep -e '^<[0-3]>' -e 'Call Trace' -e 'WARNING:' | while read -r line; do echo "GUEST error $line"; done
    echo "GUEST end"
}

load() {
    for module in "$@"; do
        options=
        [ "$module" = brd ] && options="rd_nr=6 rd_size=16384"
        # shellcheck disable=SC2086 # options are words
        insmod "/modules/$module.ko" $options || echo "GUEST log insmod $module failed"
    done
}

# Makes this many RAID-5 arrays of three disks in memory each. A processor has a DMA channel of its
# own, so each array's thread, which lets the engine copy, gets a processor of its own.
raid() {
    load @RAID@
    export MDADM_NO_UDEV=1
    for array in $(seq 0 $(($1 - 1))); do
        first=$((array * 3))
        mdadm --create "/dev/md$array" --run --assume-clean --level=5 --chunk=64 --raid-devices=3 \
            "/dev/ram$first" "/dev/ram$((first + 1))" "/dev/ram$((first + 2))" >/tmp/mdadm 2>&1 ||
            while read -r line; do echo "GUEST error $line"; done </tmp/mdadm
        taskset -p $((1 << array)) "$(pidof "md${array}_raid5")" >/dev/null
    done
}

# Writes 4 MiB of random data to an array, reads it from the disks and compares, until a time; once at least,
# however busy the host is.
work() {
    rounds=0 wrong=0
    while [ $rounds = 0 ] || [ "$(date +%s)" -lt "$2" ]; do
        dd if=/dev/urandom of="/tmp/$1" bs=64k count=64 2>/dev/null
        place=$((rounds % 6 * 64))
        dd if="/tmp/$1" of="/dev/$1" bs=64k seek=$place conv=fsync,notrunc 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        read_back=$(dd if="/dev/$1" bs=64k skip=$place count=64 2>/dev/null | sha256sum)
        [ "$read_back" = "$(sha256sum <"/tmp/$1")" ] || wrong=$((wrong + 1))
        rounds=$((rounds + 1))
    done
    echo check >"/sys/block/$1/md/sync_action"
    while [ "$(cat "/sys/block/$1/md/sync_action")" != idle ]; do sleep 0.1; done
    echo "GUEST work $1 $rounds $wrong $(cat "/sys/block/$1/md/mismatch_cnt")"
}

# Binds idxd to the first DSA and lets Debian's tool enable it and its queue, of the type and for the driver
# of that name. What is read back is the dword of WQCFG, at 0x808 here, that holds a PASID.
idxd() {
    for function in /sys/bus/pci/devices/*; do
        [ "$(cat "$function/device")" = 0x0b25 ] && break
    done
    # A driver that is new to the device takes the queue as the device has it.
    if [ -e /sys/bus/pci/drivers/idxd ]; then
        basename "$function" >/sys/bus/pci/drivers/idxd/unbind
        basename "$function" >/sys/bus/pci/drivers/idxd/bind
    else
        load @IDXD@
    fi
    device=$(basename "$(ls -d /sys/bus/dsa/devices/dsa*)")
    queue=wq${device#dsa}.0
    {
        # The driver has found the device enabled.
        accel-config disable-device "$device"
        accel-config config-wq "$device/$queue" --type="$1" --name=queue --driver-name="$2" &&
            accel-config enable-device "$device" &&
            accel-config enable-wq "$device/$queue"
    } 2>&1 | while read -r line; do echo "GUEST log idxd: $line"; done
    bar=$(head -n 1 "$function/resource" | cut -d ' ' -f 1)
    node=none
    [ -c "/dev/dsa/$queue" ] && node=/dev/dsa/$queue
    echo "GUEST queue $(cat "/sys/bus/dsa/devices/$queue/state") $(devmem $((bar + 0x808)) 32) $node"
}

# As idxd, with a whole DSA: its first queue and engine belong to no group yet. The device is attached by the
# driver's own PASID too if the guest's IOMMU has PASIDs.
whole() {
    load @IDXD@
    device=$(basename "$(ls -d /sys/bus/dsa/devices/dsa*)")
    queue=wq${device#dsa}.0
    {
        accel-config config-engine "$device/engine${device#dsa}.0" --group-id=0 &&
            accel-config config-wq "$device/$queue" --group-id=0 --wq-size=16 --mode=dedicated --priority=10 \
                --type=user --name=queue --driver-name=user &&
            accel-config enable-device "$device" &&
            accel-config enable-wq "$device/$queue"
    } 2>&1 | while read -r line; do echo "GUEST log idxd: $line"; done
    node=none
    [ -c "/dev/dsa/$queue" ] && node=/dev/dsa/$queue
    echo "GUEST queue $(cat "/sys/bus/dsa/devices/$queue/state") 0x0 $node"
    echo "GUEST log pasid_enabled $(cat "/sys/bus/dsa/devices/$device/pasid_enabled")"
}

# A file of random data in memory, made once: its hash.
keep() {
    [ -e /tmp/kept ] || dd if=/dev/urandom of=/tmp/kept bs=1M count=16 2>/dev/null
    echo "GUEST kept $(sha256sum </tmp/kept)"
}

load @MODULES@
report
while read -r order operand driver; do
    case $order in
    report) ;;
    # Another probe is another self-test of the driver.
    probe)
        echo "$operand" >"/sys/bus/pci/drivers/ioatdma/unbind"
        echo "$operand" >"/sys/bus/pci/drivers/ioatdma/bind"
        ;;
    raid) raid "$operand" ;;
    # Every array works for so many seconds.
    work)
        end=$(($(date +%s) + operand))
        for array in /dev/md[0-9]; do
            work "$(basename "$array")" $end &
        done
        wait
        ;;
    idxd) idxd "$operand" "$driver" ;;
    whole) whole ;;
    remove) rmmod "$operand" 2>&1 | while read -r line; do echo "GUEST error $line"; done ;;
    # Its devices in the hands of a program that does its worst.
    hostile) hostile "$operand" ;;
    keep) keep ;;
    off) poweroff -f ;;
    esac
    report
done
