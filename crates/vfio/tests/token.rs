//! Tokens between a physical function and its virtual ones.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use ioasid_iommu::{DeviceConfig, Iommu, IommuConfig};
use ioasid_iommufd::Context;
use ioasid_vfio::{
    DeviceModel, Passthrough, Vfio, VfioDevice,
    error::TokenError,
    pci::{Function, FunctionBuilder, SriovLayout},
};

const RIGHT: [u8; 16] = [1; 16];
const WRONG: [u8; 16] = [2; 16];

#[derive(Debug)]
struct Nothing(Function);

impl DeviceModel for Nothing {
    fn function(&self) -> &Function {
        &self.0
    }

    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

struct Machine {
    iommu: Arc<Iommu>,
    physical: Arc<VfioDevice>,
    virtual_function: Arc<VfioDevice>,
}

fn machine() -> Machine {
    let iommu = Iommu::new(IommuConfig::default());
    let vfio = Vfio::new(&iommu);
    let add = |address: &str, builder: FunctionBuilder| {
        let config = DeviceConfig::new(address.parse().unwrap());
        let device = iommu.add_device(config).unwrap();
        let model = Arc::new(Nothing(builder.build().unwrap()));
        vfio.add(model, Passthrough::Whole(device))
    };
    let layout = SriovLayout {
        total: 1,
        offset: 1,
        stride: 1,
        device: 2,
        bars: [None; 6],
    };
    let physical = FunctionBuilder::new(1, 2).express().sriov(layout);
    let virtual_function = FunctionBuilder::new(1, 2).virtual_function();
    Machine {
        physical: add("0000:6b:01.0", physical),
        virtual_function: add("0000:6b:01.1", virtual_function),
        iommu,
    }
}

#[test]
fn a_virtual_function_wants_the_physical_ones_token() {
    let machine = machine();
    let vf = &machine.virtual_function;
    assert_eq!(vf.check_token(None), Ok(()), "a driver of the host has it");
    assert_eq!(vf.check_token(Some(&RIGHT)), Err(TokenError::Unneeded));
    vf.set_physical(&machine.physical);
    assert_eq!(vf.check_token(None), Err(TokenError::Missing));
    let unknown = vf.check_token(Some(&RIGHT));
    assert_eq!(unknown, Err(TokenError::Wrong), "nobody knows it");
    machine.physical.check_token(Some(&RIGHT)).unwrap();
    assert_eq!(vf.check_token(Some(&RIGHT)), Ok(()));
    assert_eq!(vf.check_token(Some(&WRONG)), Err(TokenError::Wrong));
    assert_eq!(vf.check_token(None), Err(TokenError::Missing));
}

#[test]
fn while_a_virtual_function_is_open_the_physical_one_wants_the_token_too() {
    let Machine {
        iommu,
        physical,
        virtual_function,
    } = machine();
    virtual_function.set_physical(&physical);
    physical.check_token(Some(&RIGHT)).unwrap();
    assert_eq!(physical.check_token(None), Ok(()), "nobody uses one");
    let file = virtual_function.open().unwrap();
    file.bind(&Context::new(&iommu)).unwrap();
    assert_eq!(physical.check_token(None), Err(TokenError::Missing));
    assert_eq!(physical.check_token(Some(&WRONG)), Err(TokenError::Wrong));
    assert_eq!(physical.check_token(Some(&RIGHT)), Ok(()));
    file.close();
    physical.check_token(Some(&WRONG)).unwrap();
    assert_eq!(virtual_function.check_token(Some(&WRONG)), Ok(()));
}

#[test]
fn the_token_outlives_the_files_of_the_physical_function() {
    let Machine {
        iommu,
        physical,
        virtual_function,
    } = machine();
    virtual_function.set_physical(&physical);
    let file = physical.open().unwrap();
    file.bind(&Context::new(&iommu)).unwrap();
    file.set_token(RIGHT).unwrap();
    file.close();
    assert_eq!(virtual_function.check_token(Some(&RIGHT)), Ok(()));
}
