//! An assembler for BPF with forward jumps to named places.

use libc::{BPF_ABS, BPF_JMP, BPF_K, BPF_LD, BPF_W};

use crate::system::seccomp::Instruction;

/// The instructions so far, with jumps whose distance is not known yet.
pub(super) struct Assembler<L> {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Target<L>, Target<L>)>,
    labels: Vec<(L, usize)>,
}

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target<L> {
    /// The next instruction.
    Next,
    /// A named place further on.
    To(L),
}

impl<L: Copy + PartialEq> Assembler<L> {
    pub(super) fn new() -> Self {
        Assembler {
            code: Vec::new(),
            jumps: Vec::new(),
            labels: Vec::new(),
        }
    }

    pub(super) fn op(&mut self, code: u32, k: u32) -> &mut Self {
        self.code.push(Instruction {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        });
        self
    }

    /// Loads the word at `offset` of `struct seccomp_data`.
    pub(super) fn load(&mut self, offset: u32) -> &mut Self {
        self.op(BPF_LD | BPF_W | BPF_ABS, offset)
    }

    pub(super) fn jump(&mut self, test: u32, k: u32, yes: Target<L>, no: Target<L>) -> &mut Self {
        self.jumps.push((self.code.len(), yes, no));
        self.op(BPF_JMP | test | BPF_K, k)
    }

    pub(super) fn label(&mut self, label: L) -> &mut Self {
        self.labels.push((label, self.code.len()));
        self
    }

    pub(super) fn finish(mut self) -> Vec<Instruction> {
        for (at, yes, no) in std::mem::take(&mut self.jumps) {
            let skip = |target: Target<L>| -> u8 {
                let Target::To(label) = target else {
                    return 0;
                };
                let place = self.labels.iter().find(|(l, _)| *l == label);
                let distance = place.and_then(|(_, to)| to.checked_sub(at + 1));
                distance
                    .and_then(|d| u8::try_from(d).ok())
                    .expect("the filter is short and jumps forward to labels it has")
            };
            let (jt, jf) = (skip(yes), skip(no));
            if let Some(instruction) = self.code.get_mut(at) {
                instruction.jt = jt;
                instruction.jf = jf;
            }
        }
        self.code
    }
}
