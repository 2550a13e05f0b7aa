//! Rows of steps that lead somewhere.

use crate::steps::{
    CONFIG, DSA_COMMAND, DSA_SUBMIT, FEATURE, INFO, IOAT_START, LEAVE, LOG, MAP, MAP_PRIVATE,
    NO_REPLY, OTHER, POKE, READ, RESET, SET_IRQS, STATE, STATE_READ, STATE_WRITE, STEP, SYNC,
    UNMAP, WRITE, WRITE_MULTI,
};

/// What a mutation puts in.
pub(crate) const PHRASES: &[&[[u8; STEP]]] = &[
    // Memory: a file, private memory, and away with it.
    &[[MAP, 0, 0, 0, 0, 0, 0, 0]],
    &[[MAP_PRIVATE, 160, 2, 0, 0, 0, 0, 0]],
    &[[UNMAP, 0, 0, 0, 0, 0, 0, 0]],
    &[[UNMAP, 160, 2, 0, 0, 0, 0, 0], [UNMAP, 0, 6, 2, 0, 0, 0, 0]],
    // A child of a DSA that works, with interrupts.
    &[
        [MAP, 0, 0, 0, 0, 0, 0, 0],
        [CONFIG, 0, 0, 0, 0, 0, 0, 0],
        [DSA_COMMAND, 3, 0, 0, 0, 0, 0, 0],
        [DSA_COMMAND, 1, 0, 0, 0, 0, 0, 0],
        [DSA_COMMAND, 6, 0, 0, 0, 0, 0, 0],
        [SET_IRQS, 2, 0, 0, 0, 2, 0, 0],
        [DSA_SUBMIT, 0, 0, 1, 2, 8, 2, 0],
        [SYNC, 0, 0, 0, 0, 0, 0, 0],
    ],
    // A whole DSA: a group with a queue and an engine.
    &[
        [CONFIG, 0, 0, 0, 0, 0, 0, 0],
        [WRITE, 0, 0, 0x60, 3, 1, 0, 0],
        [WRITE, 0, 0x20, 0x60, 3, 3, 0, 0],
        [WRITE, 0, 0, 0x70, 2, 16, 0, 0],
        [WRITE, 0, 8, 0x70, 2, 0xa1, 0, 0],
        [WRITE, 0, 12, 0x70, 2, 0xb5, 0, 0],
        [DSA_COMMAND, 1, 0, 0, 0, 0, 0, 0],
        [DSA_COMMAND, 6, 0, 0, 0, 0, 0, 0],
    ],
    // Work, also for private memory and in a batch.
    &[
        [DSA_SUBMIT, 3, 0, 1, 2, 8, 4, 0],
        [DSA_SUBMIT | NO_REPLY << 5, 6, 0, 2, 2, 8, 4, 0],
    ],
    &[
        [DSA_SUBMIT, 0, 0, 161, 160, 162, 2, 0],
        [SYNC, 0, 0, 0, 0, 0, 0, 0],
    ],
    &[
        [POKE, 0, 0, 0, 2, 8, 2, 0],
        [POKE, 3, 0, 2, 2, 8, 2, 0],
        [DSA_SUBMIT, 8, 0, 1, 0, 0, 8, 0],
    ],
    // An I/OAT channel.
    &[
        [MAP, 0, 0, 0, 0, 0, 0, 0],
        [CONFIG, 0, 0, 0, 0, 0, 0, 0],
        [POKE, 0, 0, 1, 2, 8, 2, 0],
        [IOAT_START, 0, 0, 4, 1, 0, 0, 0],
        [SYNC, 0, 0, 0, 0, 0, 0, 0],
    ],
    // Interrupts of every kind, and masks.
    &[
        [SET_IRQS, 2, 0, 0, 0, 1, 0, 0],
        [SET_IRQS, 2, 0, 0, 2, 1, 0, 0],
        [SET_IRQS, 0, 0, 0, 0, 1, 0, 0],
        [SET_IRQS, 0, 0, 0, 4, 1, 0, 0],
        [SET_IRQS, 2, 0, 0, 2, 0, 0, 0],
    ],
    &[
        [INFO, 0, 0, 0, 0, 0, 0, 0],
        [INFO, 1, 7, 0, 0, 0, 0, 0],
        [INFO, 2, 0, 0, 0, 0, 0, 0],
        [INFO, 3, 2, 0, 0, 0, 0, 0],
    ],
    &[
        [READ, 0, 0x10, 0, 3, 0, 0, 0],
        [READ, 130, 0, 0, 2, 0, 0, 0],
    ],
    &[[WRITE_MULTI, 3, 0, 0x80, 4, 0, 2, 1]],
    &[[RESET, 0, 0, 0, 0, 0, 0, 0]],
    &[[CONFIG, 6, 0, 0, 0, 0, 0, 0], [CONFIG, 0, 0, 0, 0, 0, 0, 0]],
    // Low power and tokens; migration.
    &[
        [FEATURE, 3, 2, 0, 0, 0, 0, 0],
        [FEATURE, 5, 2, 0, 0, 0, 0, 0],
        [FEATURE, 1, 1, 0, 8, 0, 0, 0],
        [FEATURE, 9, 1, 0, 8, 0, 0, 0],
    ],
    &[
        [STATE, 3, 0, 0, 0, 0, 0, 0],
        [STATE_READ, 4, 1, 0, 0, 0, 0, 0],
        [STATE, 4, 0, 0, 0, 0, 0, 0],
        [STATE_WRITE, 0, 0, 0, 0, 0, 0, 0],
        [STATE, 1, 0, 0, 0, 0, 0, 0],
        [STATE, 2, 0, 0, 0, 0, 0, 0],
    ],
    &[[STATE, 1, 0, 0, 0, 0, 0, 0], [STATE, 2, 0, 0, 0, 0, 0, 0]],
    // A log of DMA.
    &[
        [LOG, 0, 0, 0, 0, 1, 0, 0],
        [LOG, 4, 0, 0, 0, 0, 0, 0],
        [LOG, 3, 0, 0, 0, 0, 0, 0],
    ],
    &[[OTHER, 14, 0, 0, 0, 0, 0, 0]],
    &[[LEAVE, 0, 0, 0, 0, 0, 0, 0]],
];
