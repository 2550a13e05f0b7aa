#!/bin/busybox sh
# The first program of a guest. What it says begins with GUEST; it takes its orders from the console.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

# Every PCI function: address, ids, driver, DMA channels; the interrupts of their drivers.
report() {
    for function in /sys/bus/pci/devices/*; do
        driver=none
        [ -e "$function/driver" ] && driver=$(basename "$(readlink "$function/driver")")
        channels=$(ls "$function/dma" 2>/dev/null | wc -l)
        echo "GUEST pci $(basename "$function") $(cat "$function/vendor") $(cat "$function/device") $driver $channels"
    done
    grep ioat /proc/interrupts | while read -r line; do echo "GUEST irq $line"; done
    dmesg | grep -i -e ioat -e 'self-test' | while read -r line; do echo "GUEST log $line"; done
    echo "GUEST end"
}

for module in @MODULES@; do
    insmod "/modules/$module.ko" || echo "GUEST log insmod $module failed"
done
report
while read -r order function; do
    case $order in
    report) ;;
    # Another probe is another self-test of the driver.
    probe)
        echo "$function" >"/sys/bus/pci/drivers/ioatdma/unbind"
        echo "$function" >"/sys/bus/pci/drivers/ioatdma/bind"
        ;;
    off) poweroff -f ;;
    esac
    report
done
