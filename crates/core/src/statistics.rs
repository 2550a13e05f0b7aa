//! What a driver counts of its jobs.

use std::time::Duration;

use crate::inspect::{Inspect, Node};

/// Jobs that one driver has given to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs that ended.
    pub jobs: u64,
    /// Of them, those that did not succeed.
    pub errors: u64,
    /// Of them, those that a page fault ended.
    pub faults: u64,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// It succeeded.
    Done,
    /// A page fault ended it.
    Fault,
    /// Another error ended it.
    Failed,
}

/// Jobs and how long they took.
#[derive(Clone, Debug, Default)]
pub struct JobStatistics {
    /// The counts.
    pub counts: JobCounts,
    /// Times from the doorbell to the completed wait.
    pub latency: Latency,
}

impl JobStatistics {
    /// Adds one job.
    pub fn add(&mut self, end: JobEnd, time: Duration) {
        self.latency.add(time);
        self.counts.jobs += 1;
        self.counts.errors += u64::from(end != JobEnd::Done);
        self.counts.faults += u64::from(end == JobEnd::Fault);
    }

    /// Puts them into `node`.
    #[must_use]
    pub fn inspect_into(&self, node: Node) -> Node {
        node.with("jobs", self.counts.jobs)
            .with("errors", self.counts.errors)
            .with("faults", self.counts.faults)
            .with("latency", self.latency.inspect())
    }
}

/// Buckets per power of two.
const STEPS: u32 = 4;
/// Enough for 2^64 nanoseconds.
const BUCKETS: usize = 64 * STEPS as usize;

/// A distribution of times, kept as counts in buckets that are at most a quarter wide.
#[derive(Clone, Debug)]
pub struct Latency {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    longest: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        Latency {
            buckets: Box::new([0; BUCKETS]),
            count: 0,
            longest: Duration::ZERO,
        }
    }
}

impl Latency {
    /// Adds one time.
    pub fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket(nanoseconds)) {
            *bucket += 1;
        }
        self.count += 1;
        self.longest = self.longest.max(time);
    }

    /// How many times were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest time.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The time that `percent` of 100 times do not exceed, rounded up to its bucket's end; zero if
    /// there are none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                return Duration::from_nanos(bucket_end(index)).min(self.longest);
            }
        }
        self.longest
    }
}

/// The bucket of a time: its power of two, then the two bits below.
fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.max(1);
    let power = value.ilog2();
    let step = if power >= 2 {
        value >> (power - 2) & 3
    } else {
        0
    };
    (power * STEPS) as usize + step as usize
}

/// The last time of a bucket.
fn bucket_end(index: usize) -> u64 {
    let (power, step) = (index as u32 / STEPS, index as u64 % u64::from(STEPS));
    match power {
        0 => 1,
        1 => 3,
        power => (4 + step)
            .checked_shl(power - 2)
            .map_or(u64::MAX, |start| start + ((1 << (power - 2)) - 1)),
    }
}

impl Inspect for Latency {
    fn inspect(&self) -> Node {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Node::new()
            .with("p50_ns", nanoseconds(self.percentile(50.0)))
            .with("p99_ns", nanoseconds(self.percentile(99.0)))
            .with("longest_ns", nanoseconds(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_quarter_of_the_truth() {
        let mut latency = Latency::default();
        for microseconds in 1..=1000 {
            latency.add(Duration::from_micros(microseconds));
        }
        for (percent, truth) in [(1.0, 10.0), (50.0, 500.0), (99.0, 990.0)] {
            let found = latency.percentile(percent).as_nanos() as f64 / 1000.0;
            assert!(
                (truth..=truth * 1.25).contains(&found),
                "{percent}: {found}"
            );
        }
        assert_eq!(latency.percentile(100.0), Duration::from_millis(1));
    }

    #[test]
    fn every_time_lies_in_its_bucket() {
        for value in [1, 2, 3, 4, 5, 7, 8, 100, 1 << 40, u64::MAX] {
            let index = bucket(value);
            assert!(bucket_end(index) >= value, "{value}");
            assert!(
                index == 0 || bucket_end(index - 1) < value || value < 4,
                "{value}"
            );
        }
    }
}
