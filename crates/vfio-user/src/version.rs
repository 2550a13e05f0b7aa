//! VERSION: what the two sides agree on.
//!
//! The reply offers nothing that the client did not name, and is never longer than the request: a
//! client may read it into the buffer that it sent from.

use serde::Deserialize;
use zerocopy::IntoBytes;

use crate::{
    commands::prefix,
    error::{MessageError, Result},
    spec::{MAJOR, MAX_DATA_XFER_SIZE, MINOR, Version},
    wire::MAX_FDS,
};

/// Longest text that is looked at.
const MAX_TEXT: usize = 4096;

/// What a client says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
struct Proposal {
    #[serde(default)]
    capabilities: Capabilities,
}

/// What it names; of most it matters only that it does.
#[derive(Clone, Debug, Default, Deserialize)]
struct Capabilities {
    max_msg_fds: Option<u64>,
    max_data_xfer_size: Option<u64>,
    write_multiple: Option<bool>,
    migration: Option<serde::de::IgnoredAny>,
}

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Bytes of one transfer that the client can take.
    pub(crate) max_transfer: u32,
    /// The payload of the reply.
    pub(crate) reply: Vec<u8>,
}

/// Answers a client's proposal; `migratable` says whether the device can be migrated.
pub(crate) fn negotiate(payload: &[u8], migratable: bool) -> Result<Agreement> {
    let (version, text) = prefix::<Version>(payload)?;
    if version.major != MAJOR {
        let major = version.major;
        return Err(MessageError::Version { major }.into());
    }
    if text.len() > MAX_TEXT {
        let (bytes, limit) = (text.len(), MAX_TEXT);
        return Err(MessageError::TooLong { bytes, limit }.into());
    }
    let proposal = proposal(text)?.capabilities;
    let most = u64::from(MAX_DATA_XFER_SIZE);
    let max_transfer = proposal.max_data_xfer_size.unwrap_or(most).min(most);
    if max_transfer == 0 {
        return Err(MessageError::Field {
            field: "max_data_xfer_size",
            value: 0,
        }
        .into());
    }
    let own = Version {
        major: MAJOR,
        minor: MINOR,
    };
    let mut reply = own.as_bytes().to_vec();
    reply.extend(offer(&proposal, migratable, text));
    Ok(Agreement {
        max_transfer: u32::try_from(max_transfer).unwrap_or(MAX_DATA_XFER_SIZE),
        reply,
    })
}

fn proposal(text: &[u8]) -> Result<Proposal> {
    // The NUL at its end belongs to it, but not every client sends it.
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    if text.is_empty() {
        return Ok(Proposal::default());
    }
    let proposal = serde_json::from_slice(text);
    Ok(proposal.map_err(|error| MessageError::Json(error.into()))?)
}

/// The text of the reply, at most as long as `request`. What is missed least goes first where not all of
/// it has room: a maximum that is the default anyway, then digits, then what only makes a client faster.
fn offer(proposal: &Capabilities, migratable: bool, request: &[u8]) -> Vec<u8> {
    let mut offers = Vec::new();
    if migratable && proposal.migration.is_some() {
        // The size of the smallest pages of a bitmap.
        offers.push("\"migration\":{\"pgsize\":4096}".to_owned());
    }
    let fds = offers.len();
    if proposal.max_msg_fds.is_some() {
        offers.push(format!("\"max_msg_fds\":{MAX_FDS}"));
    }
    if proposal.write_multiple == Some(true) {
        offers.push("\"write_multiple\":true".to_owned());
    }
    let least = offers.clone();
    if proposal.max_data_xfer_size.is_some() {
        offers.push(format!("\"max_data_xfer_size\":{MAX_DATA_XFER_SIZE}"));
    }
    if let Some(text) = fitting(&offers, request).or_else(|| fitting(&least, request)) {
        return text;
    }
    offers = least;
    if let Some(offer) = offers
        .get_mut(fds)
        .filter(|_| proposal.max_msg_fds.is_some())
    {
        *offer = format!("\"max_msg_fds\":{}", MAX_FDS.min(9));
    }
    loop {
        if let Some(text) = fitting(&offers, request) {
            return text;
        }
        if offers.pop().is_none() {
            return Vec::new();
        }
    }
}

/// The text with `offers`, if it is not longer than `request`. It ends with a NUL, unless there is only
/// room without one and the request had none.
fn fitting(offers: &[String], request: &[u8]) -> Option<Vec<u8>> {
    let mut text = format!("{{\"capabilities\":{{{}}}}}\0", offers.join(",")).into_bytes();
    if text.len() > request.len() && request.last() != Some(&0) {
        text.pop();
    }
    (text.len() <= request.len()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn request(minor: u16, text: &str) -> Vec<u8> {
        let version = Version { major: 0, minor };
        let mut payload = version.as_bytes().to_vec();
        payload.extend(text.as_bytes());
        payload
    }

    fn text(agreement: &Agreement) -> &str {
        let text = std::str::from_utf8(&agreement.reply[4..]).unwrap();
        text.strip_suffix('\0').unwrap_or(text)
    }

    #[test]
    fn the_reply_names_only_what_the_client_named() {
        let proposal = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":65536,"pgsizes":4096,"migration":{"pgsize":4096}}}"#;
        let agreement = negotiate(&request(1, &format!("{proposal}\0")), false).unwrap();
        assert_eq!(agreement.max_transfer, 65536);
        assert_eq!(agreement.reply[..4], [0; 4], "version 0.0");
        let offered = r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}"#;
        assert_eq!(text(&agreement), offered);
    }

    #[test]
    fn nothing_that_a_client_named_is_lost_for_want_of_room() {
        // With one digit less than the maximum here, and as the crate `vfio_user` and QEMU write it.
        let rest = [
            r#""max_data_xfer_size":1048576,"migration":{"pgsize":4096}"#,
            r#""migration":{"pgsize":4096}"#,
            r#""migration":{"pgsize":4096},"write_multiple":true"#,
            r#""max_data_xfer_size":1,"migration":{"pgsize":4096},"write_multiple":true"#,
        ];
        for fds in [1, 8, 10, 16, 64] {
            for rest in rest {
                for end in ["", "\0"] {
                    let named =
                        format!("{{\"capabilities\":{{\"max_msg_fds\":{fds},{rest}}}}}{end}");
                    let request = request(0, &named);
                    let agreement = negotiate(&request, true).unwrap();
                    assert!(agreement.reply.len() <= request.len(), "{named}");
                    let offered = proposal(text(&agreement).as_bytes()).unwrap().capabilities;
                    assert!(offered.migration.is_some(), "{named}");
                    assert!(offered.max_msg_fds.is_some_and(|most| most >= 9), "{named}");
                    let multiple = rest.contains("write_multiple");
                    assert_eq!(offered.write_multiple, multiple.then_some(true), "{named}");
                    // A client that gets none takes the default.
                    let transfer = offered.max_data_xfer_size.unwrap_or(1 << 20);
                    assert_eq!(transfer, u64::from(MAX_DATA_XFER_SIZE), "{named}");
                }
            }
        }
    }

    #[test]
    fn migration_is_offered_where_both_sides_have_it() {
        let proposal = r#"{"capabilities":{"migration":{"pgsize":4096,"max_bitmap_size":1024}}}"#;
        let agreement = negotiate(&request(0, proposal), true).unwrap();
        let offered = r#"{"capabilities":{"migration":{"pgsize":4096}}}"#;
        assert_eq!(text(&agreement), offered);
        for (proposal, migratable) in [(proposal, false), (r#"{"capabilities":{}}"#, true)] {
            let request = request(0, &format!("{proposal}\0"));
            let agreement = negotiate(&request, migratable).unwrap();
            assert_eq!(text(&agreement), r#"{"capabilities":{}}"#);
        }
    }

    #[test]
    fn the_reply_is_never_longer_than_the_request() {
        let proposals = [
            "",
            "{}",
            r#"{"capabilities":{}}"#,
            r#"{"capabilities":{"max_msg_fds":1}}"#,
            r#"{"capabilities":{"write_multiple":true}}"#,
            r#"{"capabilities":{"write_multiple":true,"max_data_xfer_size":1}}"#,
        ];
        for proposal in proposals {
            for end in ["", "\0"] {
                let request = request(0, &format!("{proposal}{end}"));
                let agreement = negotiate(&request, true).unwrap();
                assert!(agreement.reply.len() <= request.len(), "{proposal}");
            }
        }
        let short = request(0, "{\"capabilities\":{\"max_msg_fds\":1}}\0");
        assert_eq!(
            text(&negotiate(&short, true).unwrap()),
            r#"{"capabilities":{"max_msg_fds":9}}"#
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |payload: &[u8]| match negotiate(payload, true) {
            Err(Error::Message(error)) => error,
            other => panic!("{other:?}"),
        };
        let size = MessageError::Size {
            bytes: 3,
            needed: 4,
        };
        assert_eq!(refused(&[0; 3]), size);
        let version = MessageError::Version { major: 1 };
        assert_eq!(refused(&[1, 0, 0, 0]), version);
        for text in ["{", "[1]x", "\u{0}\u{0}", r#"{"capabilities":7}"#] {
            let error = refused(&request(0, text));
            assert!(matches!(error, MessageError::Json(_)), "{text}: {error}");
        }
        let deep = "[".repeat(4000);
        let error = refused(&request(0, &deep));
        assert!(matches!(error, MessageError::Json(_)), "{error}");
        let long = " ".repeat(5000);
        let too_long = MessageError::TooLong {
            bytes: 5000,
            limit: MAX_TEXT,
        };
        assert_eq!(refused(&request(0, &long)), too_long);
        let none = r#"{"capabilities":{"max_data_xfer_size":0}}"#;
        let nothing = MessageError::Field {
            field: "max_data_xfer_size",
            value: 0,
        };
        assert_eq!(refused(&request(0, none)), nothing);
    }
}
