use iced_x86::{Mnemonic, Register};

use crate::forms::{self, Trial, Wants};
use crate::machine::Access;
use crate::{as_it_is, compare, harness_runs};

const FULL: &[Mnemonic] = &[
    Mnemonic::Movups,
    Mnemonic::Vmovups,
    Mnemonic::Movupd,
    Mnemonic::Vmovupd,
    Mnemonic::Movdqu,
    Mnemonic::Vmovdqu,
    Mnemonic::Vmovdqu8,
    Mnemonic::Vmovdqu16,
    Mnemonic::Vmovdqu32,
    Mnemonic::Vmovdqu64,
    Mnemonic::Lddqu,
    Mnemonic::Vlddqu,
    Mnemonic::Movaps,
    Mnemonic::Vmovaps,
    Mnemonic::Movapd,
    Mnemonic::Vmovapd,
    Mnemonic::Movdqa,
    Mnemonic::Vmovdqa,
    Mnemonic::Vmovdqa32,
    Mnemonic::Vmovdqa64,
    Mnemonic::Movntdq,
    Mnemonic::Vmovntdq,
    Mnemonic::Movntdqa,
    Mnemonic::Vmovntdqa,
    Mnemonic::Movntps,
    Mnemonic::Vmovntps,
    Mnemonic::Movntpd,
    Mnemonic::Vmovntpd,
];

const PARTS: &[Mnemonic] = &[
    Mnemonic::Movd,
    Mnemonic::Vmovd,
    Mnemonic::Movq,
    Mnemonic::Vmovq,
    Mnemonic::Movss,
    Mnemonic::Vmovss,
    Mnemonic::Movsd,
    Mnemonic::Vmovsd,
    Mnemonic::Movntss,
    Mnemonic::Movntsd,
    Mnemonic::Movlps,
    Mnemonic::Vmovlps,
    Mnemonic::Movlpd,
    Mnemonic::Vmovlpd,
    Mnemonic::Movhps,
    Mnemonic::Vmovhps,
    Mnemonic::Movhpd,
    Mnemonic::Vmovhpd,
];

const ELEMENTS: &[Mnemonic] = &[
    Mnemonic::Pinsrb,
    Mnemonic::Pinsrw,
    Mnemonic::Pinsrd,
    Mnemonic::Pinsrq,
    Mnemonic::Vpinsrb,
    Mnemonic::Vpinsrw,
    Mnemonic::Vpinsrd,
    Mnemonic::Vpinsrq,
    Mnemonic::Pextrb,
    Mnemonic::Pextrw,
    Mnemonic::Pextrd,
    Mnemonic::Pextrq,
    Mnemonic::Vpextrb,
    Mnemonic::Vpextrw,
    Mnemonic::Vpextrd,
    Mnemonic::Vpextrq,
    Mnemonic::Extractps,
    Mnemonic::Vextractps,
    Mnemonic::Vextractf128,
    Mnemonic::Vextracti128,
    Mnemonic::Vextractf32x4,
    Mnemonic::Vextracti32x4,
    Mnemonic::Vextractf64x2,
    Mnemonic::Vextracti64x2,
    Mnemonic::Vextractf32x8,
    Mnemonic::Vextracti32x8,
    Mnemonic::Vextractf64x4,
    Mnemonic::Vextracti64x4,
    Mnemonic::Vinsertf128,
    Mnemonic::Vinserti128,
    Mnemonic::Vinsertf32x4,
    Mnemonic::Vinserti32x4,
    Mnemonic::Vinsertf64x2,
    Mnemonic::Vinserti64x2,
    Mnemonic::Vinsertf32x8,
    Mnemonic::Vinserti32x8,
    Mnemonic::Vinsertf64x4,
    Mnemonic::Vinserti64x4,
];

const BROADCASTS: &[Mnemonic] = &[
    Mnemonic::Vbroadcastss,
    Mnemonic::Vbroadcastsd,
    Mnemonic::Vpbroadcastb,
    Mnemonic::Vpbroadcastw,
    Mnemonic::Vpbroadcastd,
    Mnemonic::Vpbroadcastq,
    Mnemonic::Vbroadcastf128,
    Mnemonic::Vbroadcasti128,
    Mnemonic::Vbroadcastf32x2,
    Mnemonic::Vbroadcasti32x2,
    Mnemonic::Vbroadcastf32x4,
    Mnemonic::Vbroadcasti32x4,
    Mnemonic::Vbroadcastf64x2,
    Mnemonic::Vbroadcasti64x2,
    Mnemonic::Vbroadcastf32x8,
    Mnemonic::Vbroadcasti32x8,
    Mnemonic::Vbroadcastf64x4,
    Mnemonic::Vbroadcasti64x4,
];

const MASKS: &[Mnemonic] = &[
    Mnemonic::Kmovb,
    Mnemonic::Kmovw,
    Mnemonic::Kmovd,
    Mnemonic::Kmovq,
    Mnemonic::Vmaskmovps,
    Mnemonic::Vmaskmovpd,
    Mnemonic::Vpmaskmovd,
    Mnemonic::Vpmaskmovq,
];

fn aligned(_: Mnemonic) -> Wants {
    Wants { alignment: 64 }
}

/// An unmasked move is one access of its full width.
fn once(trial: &Trial, accesses: &[Access]) -> Result<(), String> {
    let bytes = trial.instruction.memory_size().size();
    let masked = trial.instruction.op_mask() != Register::None;
    match accesses {
        [Access::Load(_, length) | Access::Store(_, length)] if *length == bytes => Ok(()),
        _ if masked => Ok(()),
        _ => Err(format!("not one access of {bytes} bytes")),
    }
}

fn unmasked(
    _: &crate::bench_top::BenchTop,
    trial: &mut Trial,
    _: &mut [u8],
    _: &mut crate::machine::Random,
) {
    trial.instruction.set_op_mask(Register::None);
    trial.instruction.set_zeroing_masking(false);
}

#[test]
fn moves_of_whole_registers_agree_with_the_processor() {
    if harness_runs() {
        let tally = compare(forms::plain(FULL), 60, aligned, as_it_is, once);
        assert!(tally.forms >= 100, "{tally:?}");
    }
}

#[test]
fn moves_of_parts_of_registers_agree_with_the_processor() {
    if harness_runs() {
        let tally = compare(forms::plain(PARTS), 80, crate::anywhere, as_it_is, once);
        assert!(tally.forms >= 40, "{tally:?}");
    }
}

#[test]
fn insertions_and_extractions_agree_with_the_processor() {
    if harness_runs() {
        compare(forms::plain(ELEMENTS), 60, crate::anywhere, unmasked, once);
    }
}

#[test]
fn broadcasts_agree_with_the_processor() {
    if harness_runs() {
        compare(
            forms::plain(BROADCASTS),
            60,
            crate::anywhere,
            unmasked,
            once,
        );
    }
}

#[test]
fn masks_and_masked_moves_agree_with_the_processor() {
    if harness_runs() {
        compare(
            forms::plain(MASKS),
            100,
            crate::anywhere,
            as_it_is,
            crate::any_accesses,
        );
    }
}
