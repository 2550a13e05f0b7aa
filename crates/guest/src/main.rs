//! A program inside of a guest that drives devices by hand, as no driver would: what it reaches is the
//! guest's own. It takes an I/OAT with one channel and a DSA with one queue from the drivers of the
//! guest's kernel and does its worst by their registers and by descriptors in memory.
//!
//! ```text
//! hostile SECONDS    tries everything, at least once and until the time is over
//! hostile use        uses the devices as intended
//! ```
//! For each claim it says `GUEST claim ok ATTEMPTS NAME` or `GUEST claim FAIL WHY`. That nobody else has
//! noticed is for others to say.
#![allow(clippy::print_stdout, reason = "its console")]

mod channel;
mod claims;
mod elsewhere;
mod function;
mod mapping;
mod queue;
mod ram;
mod scan;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    channel::Channel,
    claims::{Results, play},
    queue::Queue,
};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("GUEST claim FAIL {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let order = std::env::args().nth(1).context("an argument is missing")?;
    let (queue, channel) = (Queue::find()?, Channel::find()?);
    let mut results = Results::new();
    if order == "use" {
        play(&queue::CLAIMS[..1], &queue, 0, &mut results);
        play(&channel::CLAIMS[..1], &channel, 0, &mut results);
    } else {
        let end = Instant::now() + Duration::from_secs(order.parse().context("seconds")?);
        for round in 0.. {
            play(queue::CLAIMS, &queue, round, &mut results);
            play(channel::CLAIMS, &channel, round, &mut results);
            if Instant::now() >= end {
                break;
            }
        }
    }
    let mut good = true;
    for (name, result) in results {
        match result {
            Ok(count) => println!("GUEST claim ok {count} {name}"),
            Err(error) => {
                good = false;
                println!("GUEST claim FAIL {name}: {error:#}");
            }
        }
    }
    Ok(good)
}
