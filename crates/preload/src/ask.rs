//! One access of a register: in the page if that is polled, by the system call otherwise.

use crate::{
    agent,
    call::{IN_BUFFER, Kind, Shape},
    own,
    page::Asked,
    sys,
};

/// Has an access carried out, with what is stored or loaded in `data` (for an enqueue, its first
/// word is the answer then). False if there is no register that answers.
pub fn access(address: u64, shape: Shape, data: &mut [u8; 64]) -> bool {
    agent::start_if_wanted();
    if let Some(page) = own::page() {
        match page.ask(hint(data), address, shape, data) {
            Asked::Done => return true,
            Asked::Declined => {}
            Asked::Taken(waiting) => {
                let shape = Shape {
                    kind: Kind::Await,
                    size: 1,
                };
                let mut nothing = [0; 64];
                sys::access(0, shape.encode(), 0, &mut nothing);
                match waiting.answer(data) {
                    Some(true) => return true,
                    Some(false) => {}
                    // The session that took the question is gone; how far it came is not known.
                    None => {
                        own::forget_page();
                        return false;
                    }
                }
            }
        }
    }
    let done = by_call(address, shape, data);
    if done {
        own::count_access();
    }
    done
}

/// A number that differs between threads: their stacks do.
fn hint(on_the_stack: &[u8; 64]) -> usize {
    let page = (on_the_stack.as_ptr() as usize >> 12) as u32;
    (page.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

fn by_call(address: u64, shape: Shape, data: &mut [u8; 64]) -> bool {
    let word = data
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word));
    let value = sys::access(address, shape.encode(), word, data);
    let in_data = match shape.kind {
        Kind::Load => shape.size > 8 || value == -i64::from(IN_BUFFER),
        _ => false,
    };
    if in_data && (value == 0 || value == -i64::from(IN_BUFFER)) {
        return true;
    }
    if (-4095..0).contains(&value) {
        return false;
    }
    if let Some(to) = data.first_chunk_mut() {
        *to = value.to_le_bytes();
    }
    true
}
