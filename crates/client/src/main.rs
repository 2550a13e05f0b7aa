//! The client as a program: plays the scene once and says in a line or two what happened. It exits
//! with 0 if everything was as it should be, with 1 and one sentence if not, with 2 on a bad option.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use passthrough_client::{Choice, Config, Interface, Order, PageTables, Report, Step, run};

const USAGE: &str = "\
usage: passthrough-client [OPTION...]

Copies data through a whole DSA (pdev) and a one-queue DSA (mdev) of one VM, by /dev/iommu and
/dev/vfio alone, and checks every byte, interrupt and fault.

  --container                by groups and a type 1 container instead of /dev/iommu
  --pdev PATH|first|none     whole device by its sysfs directory (default: the first, if any)
  --mdev PATH|first|none     mediated device by its sysfs directory (default: the first, if any)
  --attach pdev|mdev         which is attached first (default: pdev)
  --detach pdev|mdev         which is detached first (default: pdev)
  --page-tables ioas|manual-pdev|manual-mdev|manual-both
                             attach to the IOAS or to a HWPT made by hand (default: ioas)
  --data private|file|shared     kind of the data memory (default: private)
  --records private|file|shared  kind of the completion records' memory (default: private)
  --mib N                    MiB to copy through each device (default: 64)
  --timeout SECONDS          longest wait (default: 30)
  --exact-interrupts         exactly one interrupt per descriptor, or fail
  --migrate                  save and restore each device while it copies
  -v, --verbose              print each step
  -h, --help                 print this
";

struct Options {
    config: Config,
    verbose: bool,
    help: bool,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut config = Config::new();
    let (mut verbose, mut help) = (false, false);
    while let Some(argument) = arguments.next() {
        let (option, inline) = match argument.split_once('=') {
            Some((option, value)) => (option.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value = || {
            inline
                .clone()
                .or_else(|| arguments.next())
                .ok_or_else(|| format!("{option} needs a value"))
        };
        let bad = |value: &str| format!("{option} does not take `{value}`");
        config = match option.as_str() {
            "--pdev" => config.pdev(choice(value()?)),
            "--mdev" => config.mdev(choice(value()?)),
            "--attach" => config.attach(order(&value()?).map_err(|v| bad(&v))?),
            "--detach" => config.detach(order(&value()?).map_err(|v| bad(&v))?),
            "--page-tables" => config.page_tables(match value()?.as_str() {
                "ioas" => PageTables::Ioas,
                "manual-pdev" => PageTables::ManualForPdev,
                "manual-mdev" => PageTables::ManualForMdev,
                "manual-both" => PageTables::ManualForBoth,
                other => return Err(bad(other)),
            }),
            "--data" => config.data(value()?.parse().map_err(|e| format!("--data: {e}"))?),
            "--records" => config.records(value()?.parse().map_err(|e| format!("--records: {e}"))?),
            "--mib" => config.bytes(match value()?.parse::<u32>() {
                Ok(mib) if mib > 0 => u64::from(mib) << 20,
                _ => return Err("--mib takes a number of MiB, at least 1".to_owned()),
            }),
            "--timeout" => config.timeout(match value()?.parse::<u32>() {
                Ok(seconds) => Duration::from_secs(seconds.into()),
                Err(_) => return Err("--timeout takes a number of seconds".to_owned()),
            }),
            "--container" => config.interface(Interface::Container),
            "--exact-interrupts" => config.exact_interrupts(true),
            "--migrate" => config.migrate(true),
            "-v" | "--verbose" => {
                verbose = true;
                config
            }
            "-h" | "--help" => {
                help = true;
                config
            }
            other => return Err(format!("unknown option `{other}`")),
        };
    }
    Ok(Options {
        config,
        verbose,
        help,
    })
}

fn choice(value: String) -> Choice {
    match value.as_str() {
        "first" => Choice::First,
        "none" => Choice::None,
        _ => Choice::Path(value.into()),
    }
}

fn order(value: &str) -> Result<Order, String> {
    match value {
        "pdev" => Ok(Order::PdevFirst),
        "mdev" => Ok(Order::MdevFirst),
        other => Err(other.to_owned()),
    }
}

fn describe(step: &Step<'_>) -> String {
    match step {
        Step::Opened { ioas } => format!("opened /dev/iommu, IOAS {ioas}"),
        Step::Bound { role, path } => format!("bound the {role} {}", path.display()),
        Step::Attached { role, pt_id } => format!("attached the {role}: page table {pt_id}"),
        Step::Mapped { what, iova, len } => format!("mapped {what}: {len:#x} bytes at {iova:#x}"),
        Step::Ready {
            role,
            queue_size,
            max_transfer,
        } => format!("{role} ready: queue of {queue_size}, {max_transfer} bytes a descriptor"),
        Step::Copied { role, done, total } => format!("{role} copied {done} of {total} bytes"),
        Step::Unmapped { iova, len } => format!("unmapped {len:#x} bytes at {iova:#x}"),
        Step::Faulted {
            role,
            status,
            address,
        } => format!("{role} faults at {address:#x}: status {:#04x}", status.0),
        Step::Detached { role } => format!("detached the {role}"),
    }
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for device in &report.devices {
        writeln!(
            out,
            "{}: page table {}, {} MiB in {} descriptors, {} interrupts, {:.1} ms",
            device.role,
            device.pt_id,
            device.bytes >> 20,
            device.descriptors,
            device.interrupts,
            device.elapsed.as_secs_f64() * 1e3,
        )?;
    }
    writeln!(
        out,
        "{} device(s), every byte and fault as it should be",
        report.devices.len()
    )
}

fn main() -> ExitCode {
    let say = |text: &str| {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(io::stderr(), "passthrough-client: {text}");
    };
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            say(&format!("{text} (--help lists the options)"));
            return ExitCode::from(2);
        }
    };
    if options.help {
        let _ = io::stdout().write_all(USAGE.as_bytes());
        return ExitCode::SUCCESS;
    }
    let mut observer = |step: &Step<'_>| {
        if options.verbose {
            let _ = writeln!(io::stdout(), "{}", describe(step));
        }
    };
    match run(&options.config, &mut observer) {
        Ok(report) => match print(&report) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(line: &str) -> String {
        match parse(line.split(' ').map(str::to_owned)) {
            Ok(_) => panic!("`{line}` was taken"),
            Err(text) => text,
        }
    }

    #[test]
    fn a_bad_option_is_one_clear_sentence() {
        assert_eq!(fails("--attach both"), "--attach does not take `both`");
        assert_eq!(fails("--pdev"), "--pdev needs a value");
        assert_eq!(fails("--mib 0"), "--mib takes a number of MiB, at least 1");
        assert_eq!(fails("--what"), "unknown option `--what`");
        assert!(fails("--data=shm").contains("private, file, shared"));
    }

    #[test]
    fn options_take_their_value_in_both_ways() {
        let line = "--pdev none --page-tables=manual-mdev --data file --mib=1 -v";
        let options = parse(line.split(' ').map(str::to_owned)).ok().unwrap();
        assert!(options.verbose && !options.help);
        let text = format!("{:?}", options.config);
        assert!(
            text.contains("pdev: None") && text.contains("ManualForMdev"),
            "{text}"
        );
        assert!(
            text.contains("data: File") && text.contains("bytes: 1048576"),
            "{text}"
        );
    }
}
