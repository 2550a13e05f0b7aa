//! Floor 5: a software Intel DSA: work queues, engines and 1dwq children
