//! What is made of a trace: text, counts, and the Trace Event Format.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};

use ioasid_trace::{
    Filter, Reader, chrome, reader::ReadError, schema::Line, show::Shown, stats::Stats,
    summary::Summary,
};
use serde_json::Value;

const TRACE: &str = concat!(
    r#"{"kind":"header","schema":1,"program":["prog","-x"],"machine":{"devices":["dsa"]},"#,
    r#""host":{"ioasid":"0.1.0","kernel":"7.2.13","architecture":"x86_64","processors":2},"began":1}"#,
    "\n",
    r#"{"kind":"start","t":1000,"program":1,"name":"prog","maps_regions":true}"#,
    "\n",
    r#"{"kind":"call","t":2000,"duration":9000,"program":1,"pid":70,"tid":71,"fd":5,"file":1,"object":"iommufd","#,
    r#""name":"IOAS_MAP","args":{"ioas_id":1,"iova":"0xfee00000"},"errno":"EINVAL","cause":"overlaps the MSI window"}"#,
    "\n",
    r#"{"kind":"submit","t":15000,"device":"0000:6a:01.0","unit":2,"first":0,"count":1}"#,
    "\n",
    r#"{"kind":"call","t":14000,"duration":3000,"program":1,"pid":70,"tid":70,"file":2,"object":"device","#,
    r#""device":"0000:6a:01.0","name":"write","result":64}"#,
    "\n",
    r#"{"kind":"dma","t":20500,"device":"0000:6a:01.0","pasid":3,"domain":2,"access":"read","iova":"0x1000","len":"0x40"}"#,
    "\n",
    r#"{"kind":"dma","t":20600,"device":"0000:6a:01.0","pasid":3,"domain":2,"access":"write","iova":"0x2000","len":"0x40"}"#,
    "\n",
    r#"{"kind":"work","t":20000,"duration":1000,"device":"0000:6a:01.0","unit":2,"number":0,"operation":"memmove","engine":1,"end":"done"}"#,
    "\n",
    r#"{"kind":"submit","t":30000,"device":"0000:6a:01.0","unit":2,"first":1,"count":1}"#,
    "\n",
    r#"{"kind":"fault","t":31000,"device":"0000:6a:01.0","access":"write","iova":"0x9000","reason":"not mapped"}"#,
    "\n",
    r#"{"kind":"work","t":30500,"duration":700,"device":"0000:6a:01.0","unit":2,"number":1,"operation":"fill","engine":0,"end":"done"}"#,
    "\n",
    r#"{"kind":"work","t":30500,"duration":900,"device":"0000:6a:01.0","unit":1,"number":8,"operation":"memmove","end":"done"}"#,
    "\n",
    r#"{"kind":"submit","t":30100,"device":"0000:6a:01.0","unit":1,"first":8,"count":1}"#,
    "\n",
    r#"{"kind":"interrupt","t":32000,"device":"0000:6a:01.0","index":"MSI-X","vector":1}"#,
    "\n",
    r#"{"kind":"register","t":33000,"device":"0000:6a:01.0","region":0,"offset":"0xa8","access":"load","size":4,"value":"00000080","left_out":41}"#,
    "\n",
    r#"{"kind":"route","t":34000,"change":"attach","device":"0000:6a:01.0","pasid":3,"domain":2}"#,
    "\n",
    r#"{"kind":"map","t":35000,"domain":2,"iova":"0x1000","last":"0x1fff","prot":"rw"}"#,
    "\n",
    r#"{"kind":"unmap","t":36000,"domain":2,"iova":"0x0","last":"0xffffffffffffffff","bytes":"0x1000"}"#,
    "\n",
    r#"{"kind":"lost","t":37000,"lines":3,"accesses":0}"#,
    "\n",
);

fn lines(text: &str) -> Vec<Line> {
    let reader = Reader::new(text.as_bytes()).unwrap();
    reader.map(|line| line.unwrap().1).collect()
}

#[test]
fn what_is_read_is_written_again_as_it_was() {
    for (line, text) in lines(TRACE).iter().zip(TRACE.lines().skip(1)) {
        assert_eq!(serde_json::to_string(line).unwrap(), text);
    }
}

#[test]
fn a_call_is_shown_as_strace_shows_one() {
    let lines = lines(TRACE);
    assert_eq!(
        Shown(&lines[1]).to_string(),
        "0.000002 [70/71] iommufd #1 IOAS_MAP(ioas_id=1, iova=0xfee00000) = -1 EINVAL: overlaps the \
         MSI window <0.000009>"
    );
    assert_eq!(
        Shown(&lines[3]).to_string(),
        "0.000014 [70] device 0000:6a:01.0 #2 write() = 64 <0.000003>"
    );
    assert_eq!(
        Shown(&lines[4]).to_string(),
        "0.000020 0000:6a:01.0 pasid 3 dma read 0x1000 len 0x40 domain 2"
    );
}

#[test]
fn every_filter_takes_what_it_names_and_nothing_else() {
    let all = lines(TRACE);
    let kinds = |filter: Filter| -> Vec<&str> {
        let wanted = all.iter().filter(|line| filter.wants(line));
        wanted.map(Line::kind).collect()
    };
    let text = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let failed = Filter {
        errnos: text(&["einval"]),
        ..Filter::default()
    };
    assert_eq!(kinds(failed), ["call"]);
    let other_errno = Filter {
        errnos: text(&["EBUSY"]),
        ..Filter::default()
    };
    assert_eq!(kinds(other_errno), [""; 0]);
    let object = Filter {
        objects: text(&["2"]),
        ..Filter::default()
    };
    assert_eq!(kinds(object), ["call"]);
    let faults = Filter {
        kinds: text(&["fault", "interrupt"]),
        devices: text(&["0000:6a:01.0"]),
        ..Filter::default()
    };
    assert_eq!(kinds(faults), ["fault", "interrupt"]);
    let time = Filter {
        since: Some(35_000),
        until: Some(36_000),
        ..Filter::default()
    };
    assert_eq!(kinds(time), ["map", "unmap"]);
}

#[test]
fn the_summary_counts_calls_and_errnos_by_name() {
    let mut summary = Summary::default();
    lines(TRACE).iter().for_each(|line| summary.add(line));
    let map = &summary.calls()["IOAS_MAP"];
    assert_eq!((map.calls, map.time, map.errors["EINVAL"]), (1, 9000, 1));
    assert!(summary.calls()["write"].errors.is_empty());
    let text = summary.to_string();
    assert!(text.contains("IOAS_MAP (EINVAL 1)"), "{text}");
}

#[test]
fn the_statistics_count_what_each_device_did() {
    let mut stats = Stats::default();
    lines(TRACE).iter().for_each(|line| stats.add(line));
    assert_eq!(stats.devices().len(), 1);
    let device = stats.devices().values().next().unwrap();
    assert_eq!((device.read_bytes, device.written_bytes), (64, 64));
    assert_eq!((device.submitted, device.done, device.aborted), (3, 3, 0));
    assert_eq!((device.interrupts, device.faults), (1, 1));
    assert_eq!(device.accesses, 42, "with those that are left out");
    assert_eq!(device.busy, 2600);
    assert_eq!(stats.lost(), 3);
}

#[test]
fn bad_input_is_an_error_with_its_line() {
    let read = |text: &str| -> String {
        let result =
            Reader::new(text.as_bytes()).and_then(|reader| reader.collect::<Result<Vec<_>, _>>());
        result.unwrap_err().to_string()
    };
    assert_eq!(read(""), "line 1: the file is empty, and no trace");
    assert!(read("hello\n").starts_with("line 1: this is no trace"));
    assert!(read("{\"kind\":\"lost\",\"schema\":1}\n").starts_with("line 1: this is no trace"));
    let newer = TRACE.replace("\"schema\":1", "\"schema\":2");
    assert_eq!(
        read(&newer),
        "line 1: the trace has schema 2, and this ioasid reads schema 1"
    );
    let cut = &TRACE[..TRACE.len() - 20];
    let last = TRACE.lines().count();
    assert_eq!(
        read(cut),
        format!("line {last}: the trace breaks off in the middle of this line")
    );
    let wrong = TRACE.replace("\"kind\":\"map\"", "\"kind\":\"mapping\"");
    assert!(
        read(&wrong).starts_with("line 17: unknown variant"),
        "{}",
        read(&wrong)
    );
    let twice = format!("{TRACE}{TRACE}");
    assert_eq!(read(&twice), format!("line {}: a second header", last + 1));
}

#[test]
fn lines_before_a_truncated_one_are_read() {
    let cut = &TRACE[..TRACE.len() - 20];
    let reader = Reader::new(cut.as_bytes()).unwrap();
    let read: Vec<_> = reader.collect();
    let (last, before) = read.split_last().unwrap();
    assert!(matches!(last, Err(ReadError::Truncated { .. })));
    assert!(before.iter().all(Result::is_ok));
    assert_eq!(before.len(), TRACE.lines().count() - 2);
}

fn exported() -> Vec<Value> {
    let mut bytes = Vec::new();
    chrome::export(&lines(TRACE), &mut bytes).unwrap();
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    document["traceEvents"].as_array().unwrap().clone()
}

fn track(event: &Value) -> (u64, u64) {
    (
        event["pid"].as_u64().unwrap(),
        event["tid"].as_u64().unwrap(),
    )
}

/// The Trace Event Format: what each phase needs.
#[test]
fn every_exported_event_has_what_its_phase_needs() {
    for event in exported() {
        assert!(
            event["name"].is_string() && event["ts"].is_number(),
            "{event}"
        );
        track(&event);
        match event["ph"].as_str().unwrap() {
            "X" => assert!(event["dur"].as_f64().unwrap() >= 0.0),
            "i" => assert_eq!(event["s"], "t"),
            "s" | "f" | "b" | "e" => assert!(event["id"].is_u64()),
            "M" => assert!(event["args"]["name"].is_string()),
            other => panic!("phase {other}"),
        }
    }
}

#[test]
fn every_track_of_an_export_has_a_name() {
    let events = exported();
    let named: BTreeSet<_> = events
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .map(track)
        .collect();
    let used = events.iter().filter(|event| event["ph"] != "M");
    let used: BTreeSet<_> = used.map(track).collect();
    assert_eq!(named, used);
}

/// Spans of one thread must not overlap, unless one lies in the other.
#[test]
fn spans_of_an_exported_track_nest() {
    let mut tracks: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    for event in exported().iter().filter(|event| event["ph"] == "X") {
        let start = event["ts"].as_f64().unwrap();
        let end = start + event["dur"].as_f64().unwrap();
        tracks.entry(track(event)).or_default().push((start, end));
    }
    for spans in tracks.values_mut() {
        spans.sort_by(|a, b| a.partial_cmp(b).unwrap());
        for pair in spans.windows(2) {
            let [(_, end), (start, last)] = pair else {
                unreachable!()
            };
            assert!(start >= end || last <= end, "{pair:?}");
        }
    }
}

#[test]
fn an_arrow_leads_from_each_submission_to_the_end_of_its_descriptor() {
    let events = exported();
    let of = |phase: &str| -> BTreeMap<u64, &Value> {
        let events = events.iter().filter(|event| event["ph"] == phase);
        events
            .map(|event| (event["id"].as_u64().unwrap(), event))
            .collect()
    };
    let (starts, ends) = (of("s"), of("f"));
    assert_eq!(starts.len(), 3, "one of them ends on a worker");
    assert_eq!(
        starts.keys().collect::<Vec<_>>(),
        ends.keys().collect::<Vec<_>>()
    );
    for (id, start) in &starts {
        let end = ends[id];
        assert!(end["ts"].as_f64().unwrap() >= start["ts"].as_f64().unwrap());
        for (event, what) in [(start, "start"), (&end, "end")] {
            let at = event["ts"].as_f64().unwrap();
            let encloses = |span: &&Value| {
                let from = span["ts"].as_f64().unwrap();
                let to = from + span["dur"].as_f64().unwrap_or(-1.0);
                span["ph"] == "X" && track(span) == track(event) && from <= at && at <= to
            };
            assert!(
                events.iter().any(|span| encloses(&span)),
                "{what} of {id} is in a span"
            );
        }
    }
    // The first was written by a call of thread 70, the second stored to a mapping.
    assert_eq!(track(starts[&1]), (70, 70));
    assert_ne!(track(starts[&2]).0, 70);
}
