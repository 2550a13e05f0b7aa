//! A log of what a device writes, over its socket: three features, whose structs have their ranges and
//! their bitmap behind them where those of the ioctl have pointers.

use ioasid_uapi::{
    spec::vfio::{DmaLoggingRange, Feature},
    vfio::check_feature,
};
use ioasid_vfio::{
    LogRanges,
    device::Feature as Known,
    error::{DmaLogError, FeatureError},
    write_log::{MAX_RANGES, report_range},
};
use zerocopy::IntoBytes;

use crate::{
    commands::{Target, feature_reply, prefix, size, too_much, whole},
    error::Result,
    spec::{LoggingControl, LoggingReport, MAX_DATA_XFER_SIZE},
};

impl Target {
    /// DMA_LOGGING_START, DMA_LOGGING_STOP and DMA_LOGGING_REPORT.
    pub(crate) fn logging(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (request, data) = prefix::<Feature>(payload)?;
        if !self.file.has_feature(Known::DmaLog) {
            return Err(FeatureError::Absent(Known::DmaLog).into());
        }
        let number = request.flags & Feature::NUMBER;
        let (possible, bytes) = match number {
            Feature::DMA_LOGGING_START => (Feature::SET, size_of::<LoggingControl>()),
            Feature::DMA_LOGGING_STOP => (Feature::SET, 0),
            _ => (Feature::GET, size_of::<LoggingReport>()),
        };
        if !check_feature(&request, possible, bytes)? {
            return Ok(feature_reply(&request, &[]));
        }
        match number {
            Feature::DMA_LOGGING_START => self.start_log(&request, data),
            Feature::DMA_LOGGING_STOP => {
                self.file.stop_dma_log()?;
                Ok(feature_reply(&request, data))
            }
            _ => self.report_log(&request, data),
        }
    }

    /// Without a range, everything is logged.
    fn start_log(&self, request: &Feature, data: &[u8]) -> Result<Vec<u8>> {
        let (mut control, rest) = prefix::<LoggingControl>(data)?;
        if control.num_ranges > MAX_RANGES {
            return Err(DmaLogError::TooManyRanges { limit: MAX_RANGES }.into());
        }
        let (ranges, after) = rest.as_chunks::<{ size_of::<DmaLoggingRange>() }>();
        if !after.is_empty() || ranges.len() != control.num_ranges as usize {
            let needed = control.num_ranges as usize * size_of::<DmaLoggingRange>();
            return Err(size(rest.len(), needed));
        }
        let mut wanted = LogRanges::new(control.page_size);
        for bytes in ranges {
            let range: DmaLoggingRange = whole(bytes)?;
            wanted.add(range.iova, range.length)?;
        }
        if ranges.is_empty() {
            wanted = LogRanges::all(control.page_size);
        }
        control.page_size = self.file.start_dma_log(wanted)?;
        let data = [control.as_bytes(), rest].concat();
        Ok(feature_reply(request, &data))
    }

    /// The bitmap follows the struct. If the client has no room for it, the reply says how much there has
    /// to be, and the log stays what it is.
    fn report_log(&self, request: &Feature, data: &[u8]) -> Result<Vec<u8>> {
        let (report, _) = prefix::<LoggingReport>(data)?;
        let range = report_range(report.iova, report.length, report.page_size)?;
        let shift = report.page_size.trailing_zeros();
        let bits = ((report.length - 1) >> shift) + 1;
        let bytes = bits.div_ceil(64) * 8;
        if bytes > u64::from(MAX_DATA_XFER_SIZE) {
            return Err(too_much(bytes, MAX_DATA_XFER_SIZE.into()));
        }
        let full = Feature::MIN + size_of::<LoggingReport>() + bytes as usize;
        if (request.argsz as usize) < full {
            let mut reply = feature_reply(request, report.as_bytes());
            crate::commands::set_argsz(&mut reply, full);
            return Ok(reply);
        }
        let mut bitmap = vec![0_u64; bytes as usize / 8];
        self.file.report_dma_log(range, &mut |written| {
            let bit_of = |address: u64| address.saturating_sub(report.iova) >> shift;
            for bit in bit_of(written.start())..=bit_of(written.last()) {
                if let Some(word) = bitmap.get_mut((bit / 64) as usize) {
                    *word |= 1 << (bit % 64);
                }
            }
        })?;
        let data = [report.as_bytes(), bitmap.as_bytes()].concat();
        Ok(feature_reply(request, &data))
    }
}
