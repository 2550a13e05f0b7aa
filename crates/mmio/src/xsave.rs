//! Vector and mask registers as Linux shows them of another thread, in a signal frame or by
//! `PTRACE_GETREGSET`: an XSAVE area in its standard format (Intel SDM volume 1, 13.4).

/// Offsets of the components in the area, in bytes, as CPUID leaf 0xd reports them; 0 for what the
/// processor does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Component 2: bytes 16 to 31 of ymm0 to ymm15.
    pub ymm_high: usize,
    /// Component 5: the mask registers.
    pub opmask: usize,
    /// Component 6: bytes 32 to 63 of zmm0 to zmm15.
    pub zmm_high: usize,
    /// Component 7: zmm16 to zmm31.
    pub zmm_upper: usize,
}

impl Layout {
    /// The layout of this processor; `ebx` is what CPUID answers there for leaf 0xd and a subleaf.
    pub fn new(mut ebx: impl FnMut(u32) -> u32) -> Self {
        let mut offset = |component| ebx(component) as usize;
        Layout {
            ymm_high: offset(2),
            opmask: offset(5),
            zmm_high: offset(6),
            zmm_upper: offset(7),
        }
    }
}

/// xmm0 to xmm15 in the legacy part.
const XMM: usize = 160;
/// Bytes of the legacy part, after which the header begins with a bit for each component that is not
/// in its initial state.
const LEGACY: usize = 512;
const SSE: u32 = 1;
const YMM_HIGH: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HIGH: u32 = 6;
const ZMM_UPPER: u32 = 7;

/// An XSAVE area, or its legacy part alone.
#[derive(Debug)]
pub struct Area<'a> {
    bytes: &'a mut [u8],
    layout: Layout,
}

/// Where a part of a register lies.
struct Part {
    component: u32,
    at: usize,
    /// First byte of the register, and how many.
    first: usize,
    len: usize,
}

impl<'a> Area<'a> {
    /// The registers in `bytes`. What they are too short for reads as 0 and is not written.
    pub fn new(bytes: &'a mut [u8], layout: Layout) -> Self {
        Area { bytes, layout }
    }

    fn parts(&self, index: u8) -> [Option<Part>; 3] {
        let Layout {
            ymm_high,
            zmm_high,
            zmm_upper,
            ..
        } = self.layout;
        let index = usize::from(index);
        let part = |component, base, stride, number, first| {
            (base != 0).then_some(Part {
                component,
                at: base + stride * number,
                first,
                len: stride,
            })
        };
        if index < 16 {
            [
                part(SSE, XMM, 16, index, 0),
                part(YMM_HIGH, ymm_high, 16, index, 16),
                part(ZMM_HIGH, zmm_high, 32, index, 32),
            ]
        } else {
            [
                part(ZMM_UPPER, zmm_upper, 64, index.saturating_sub(16), 0),
                None,
                None,
            ]
        }
    }

    /// Vector register `index`, 0 to 31.
    pub fn vector(&self, index: u8) -> [u8; 64] {
        let mut value = [0; 64];
        for part in self.parts(index).into_iter().flatten() {
            if let Some(dst) = value.get_mut(part.first..part.first + part.len) {
                self.get(&part, dst);
            }
        }
        value
    }

    /// Sets vector register `index`, 0 to 31.
    pub fn set_vector(&mut self, index: u8, value: &[u8; 64]) {
        for part in self.parts(index).into_iter().flatten() {
            if let Some(src) = value.get(part.first..part.first + part.len) {
                self.set(&part, src);
            }
        }
    }

    /// Mask register `index`, 0 to 7.
    pub fn opmask(&self, index: u8) -> u64 {
        let mut value = [0; 8];
        if let Some(part) = self.mask(index) {
            self.get(&part, &mut value);
        }
        u64::from_le_bytes(value)
    }

    /// Sets mask register `index`, 0 to 7.
    pub fn set_opmask(&mut self, index: u8, value: u64) {
        if let Some(part) = self.mask(index) {
            self.set(&part, &value.to_le_bytes());
        }
    }

    fn mask(&self, index: u8) -> Option<Part> {
        (self.layout.opmask != 0).then_some(Part {
            component: OPMASK,
            at: self.layout.opmask + 8 * usize::from(index),
            first: 0,
            len: 8,
        })
    }

    /// Components that are not in their initial state; without a header, those of the legacy part.
    fn in_use(&self) -> u64 {
        let header = self.bytes.get(LEGACY..).and_then(<[u8]>::first_chunk::<8>);
        header.map_or(0b11, |bits| u64::from_le_bytes(*bits))
    }

    fn get(&self, part: &Part, dst: &mut [u8]) {
        let in_use = self.in_use() >> part.component & 1 != 0;
        let src = self.bytes.get(part.at..part.at + part.len);
        if let (true, Some(src)) = (in_use, src)
            && src.len() == dst.len()
        {
            dst.copy_from_slice(src);
        }
    }

    fn set(&mut self, part: &Part, src: &[u8]) {
        let was = self.in_use();
        let fits = part.at + part.len <= self.bytes.len();
        if !fits || src.len() != part.len {
            return;
        }
        if was >> part.component & 1 == 0 {
            if src.iter().all(|byte| *byte == 0) {
                return;
            }
            self.begin(part.component, was);
        }
        if let Some(dst) = self.bytes.get_mut(part.at..part.at + part.len) {
            dst.copy_from_slice(src);
        }
    }

    /// A component leaves its initial state, which is zero for all of these.
    fn begin(&mut self, component: u32, was: u64) {
        let (at, len) = match component {
            SSE => (XMM, 256),
            YMM_HIGH => (self.layout.ymm_high, 256),
            OPMASK => (self.layout.opmask, 64),
            ZMM_HIGH => (self.layout.zmm_high, 512),
            _ => (self.layout.zmm_upper, 1024),
        };
        if let Some(all) = self.bytes.get_mut(at..at + len) {
            all.fill(0);
        }
        let now = was | 1 << component;
        if let Some(header) = self.bytes.get_mut(LEGACY..LEGACY + 8) {
            header.copy_from_slice(&now.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        ymm_high: 576,
        opmask: 1088,
        zmm_high: 1152,
        zmm_upper: 1664,
    };

    fn pattern() -> [u8; 64] {
        core::array::from_fn(|i| i as u8 + 1)
    }

    #[test]
    fn registers_are_independent_and_the_rest_of_a_component_becomes_zero() {
        let mut bytes = [0xee; 2688];
        bytes[LEGACY..LEGACY + 64].fill(0);
        let mut area = Area::new(&mut bytes, LAYOUT);
        for index in [0, 7, 15, 16, 31] {
            assert_eq!(area.vector(index), [0; 64], "initial");
        }
        for index in [3, 19] {
            area.set_vector(index, &pattern());
            assert_eq!(area.vector(index), pattern());
        }
        for index in [0, 2, 4, 15, 16, 18, 20, 31] {
            assert_eq!(area.vector(index), [0; 64], "{index}");
        }
        assert_eq!(area.opmask(1), 0);
        area.set_opmask(1, 5);
        assert_eq!((area.opmask(0), area.opmask(1)), (0, 5));
        assert_eq!(area.in_use(), 0b1110_0110);
    }

    #[test]
    fn a_component_in_its_initial_state_stays_so_if_zeros_are_written() {
        let mut bytes = [0; 2688];
        let mut area = Area::new(&mut bytes, LAYOUT);
        let mut value = [0; 64];
        value[..16].fill(9);
        area.set_vector(1, &value);
        assert_eq!(area.vector(1), value);
        assert_eq!(area.in_use(), 1 << SSE);
    }

    #[test]
    fn the_legacy_part_alone_has_xmm() {
        let mut bytes = [0; LEGACY];
        let mut area = Area::new(&mut bytes, LAYOUT);
        area.set_vector(15, &pattern());
        let mut expected = pattern();
        expected[16..].fill(0);
        assert_eq!(area.vector(15), expected);
        assert_eq!(area.vector(16), [0; 64]);
    }
}
