//! Descriptors and records in a saved state.

use ioasid_vfio::{
    model::StateError,
    saved::{Reader, Writer},
};

use crate::spec::{
    CompletionRecord, Descriptor, completion::RECORD_SIZE, descriptor::DESCRIPTOR_SIZE,
};

pub(crate) fn put_descriptor(out: &mut Writer, descriptor: &Descriptor) {
    out.bytes(&descriptor.to_bytes());
}

pub(crate) fn put_record(out: &mut Writer, record: &CompletionRecord) {
    out.bytes(&record.to_bytes());
}

pub(crate) fn take_descriptor(state: &mut Reader<'_>) -> Result<Descriptor, StateError> {
    let bytes = state.array::<DESCRIPTOR_SIZE>()?;
    Ok(Descriptor::from_bytes(&bytes))
}

pub(crate) fn take_record(state: &mut Reader<'_>) -> Result<CompletionRecord, StateError> {
    let bytes = state.array::<RECORD_SIZE>()?;
    Ok(CompletionRecord::from_bytes(&bytes))
}
