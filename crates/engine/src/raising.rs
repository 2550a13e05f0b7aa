//! Which interrupts are about to be raised: they have been decided on under the lock, and are
//! raised without it.

/// Interrupts between the decision and the end of the call that raises them.
#[derive(Debug, Default)]
pub(crate) struct Raising {
    next: u64,
    /// Numbers of those that are not raised yet. As many as there are threads at the most.
    open: Vec<u64>,
}

/// All interrupts that were decided on before a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RaisedBefore(u64);

impl Raising {
    /// Some interrupts are about to be raised; [`Raising::end`] takes the number.
    pub(crate) fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.push(number);
        number
    }

    /// They have been raised.
    pub(crate) fn end(&mut self, number: u64) {
        self.open.retain(|open| *open != number);
    }

    /// What [`Raising::passed`] compares with.
    pub(crate) const fn now(&self) -> RaisedBefore {
        RaisedBefore(self.next)
    }

    /// Whether all of them have been raised. Those that came later do not count: under a flood of
    /// interrupts this comes true nevertheless.
    pub(crate) fn passed(&self, before: RaisedBefore) -> bool {
        self.open.iter().all(|open| *open >= before.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_interrupts_do_not_count() {
        let mut raising = Raising::default();
        assert!(raising.passed(raising.now()));
        let first = raising.begin();
        let before = raising.now();
        let second = raising.begin();
        assert!(!raising.passed(before));
        raising.end(first);
        assert!(raising.passed(before));
        assert!(!raising.passed(raising.now()));
        raising.end(second);
        assert!(raising.passed(raising.now()));
    }
}
