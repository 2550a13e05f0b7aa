//! The features of DMA logging (`vfio_ioctl_device_feature_logging_start` and
//! `vfio_ioctl_device_feature_logging_report`, `drivers/vfio/vfio_main.c`).

use ioasid_vfio::{
    DeviceFile, LogRanges,
    error::DmaLogError,
    write_log::{MAX_RANGES, report_range},
};
use zerocopy::{FromZeros, IntoBytes};

use super::copy;
use crate::{
    CallError, Program,
    bitmap::Bitmap,
    memory,
    spec::vfio::{DmaLoggingControl, DmaLoggingRange, DmaLoggingReport},
};

pub(super) fn start(file: &DeviceFile, data: u64, program: &dyn Program) -> Result<(), CallError> {
    let mut control = DmaLoggingControl::new_zeroed();
    memory::read(program, data, control.as_mut_bytes())?;
    if control.num_ranges == 0 {
        return Err(DmaLogError::NoRange.into());
    }
    if control.num_ranges > MAX_RANGES {
        return Err(DmaLogError::TooManyRanges { limit: MAX_RANGES }.into());
    }
    let mut ranges = LogRanges::new(control.page_size);
    for index in 0..u64::from(control.num_ranges) {
        let mut range = DmaLoggingRange::new_zeroed();
        let at = copy::offset(control.ranges, index * size_of::<DmaLoggingRange>() as u64)?;
        memory::read(program, at, range.as_mut_bytes())?;
        ranges.add(range.iova, range.length)?;
    }
    control.page_size = file.start_dma_log(ranges)?;
    if let Err(gone) = memory::write(program, data, control.as_bytes()) {
        file.stop_dma_log()?;
        return Err(gone.into());
    }
    Ok(())
}

pub(super) fn report(file: &DeviceFile, data: u64, program: &dyn Program) -> Result<(), CallError> {
    let mut report = DmaLoggingReport::new_zeroed();
    memory::read(program, data, report.as_mut_bytes())?;
    let range = report_range(report.iova, report.length, report.page_size)?;
    let mut bitmap = Bitmap::new(program, report.bitmap, report.iova, report.page_size);
    let mut result = Ok(());
    file.report_dma_log(range, &mut |written| {
        if result.is_ok() {
            result = bitmap.set(written);
        }
    })?;
    result?;
    bitmap.flush()
}
