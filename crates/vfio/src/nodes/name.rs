//! Names of devices as VFIO_GROUP_GET_DEVICE_FD takes them of a PCI device
//! (`vfio_pci_core_match`, drivers/vfio/pci/vfio_pci_core.c).

use crate::base::{error::DeviceNameError, uuid::Uuid};

/// What a VF token is given as.
const TOKEN: &[u8] = b"vf_token=";
/// Characters of a UUID.
const UUID: usize = 36;

/// Whether `text` means the device at `address`, and the token that it is given; `None` if it is
/// another device's name.
///
/// # Errors
/// [`DeviceNameError`] for anything behind the address that is not one `vf_token=UUID`.
pub(super) fn parse(address: &[u8], text: &[u8]) -> Result<Option<Option<Uuid>>, DeviceNameError> {
    let Some(mut rest) = text.strip_prefix(address) else {
        return Ok(None);
    };
    if !matches!(rest.first(), None | Some(b' ')) {
        return Ok(None);
    }
    let mut token = None;
    loop {
        if let Some(next) = rest.strip_prefix(b" ") {
            rest = next;
        } else if rest.is_empty() {
            return Ok(Some(token));
        } else if let (None, Some(value)) = (token, rest.strip_prefix(TOKEN)) {
            let uuid = value.get(..UUID).unwrap_or(value);
            token = Some(Uuid::from_create(uuid).map_err(DeviceNameError::Token)?);
            rest = value.get(UUID..).unwrap_or_default();
        } else {
            let text = String::from_utf8_lossy(rest).into_owned();
            return Err(DeviceNameError::Option { text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &[u8] = b"0000:6b:01.0";
    const TOKEN_TEXT: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";

    fn parsed(text: &str) -> Result<Option<Option<Uuid>>, DeviceNameError> {
        parse(ADDRESS, text.as_bytes())
    }

    #[test]
    fn a_name_is_the_address_alone_or_with_options_behind_a_space() {
        let token: Uuid = TOKEN_TEXT.parse().unwrap();
        assert_eq!(parsed("0000:6b:01.0"), Ok(Some(None)));
        assert_eq!(parsed("0000:6b:01.0  "), Ok(Some(None)));
        for text in [
            format!("0000:6b:01.0 vf_token={TOKEN_TEXT}"),
            format!("0000:6b:01.0  vf_token={} ", TOKEN_TEXT.to_uppercase()),
        ] {
            assert_eq!(parsed(&text), Ok(Some(Some(token))), "{text}");
        }
    }

    #[test]
    fn another_name_is_no_match_and_an_odd_option_an_error() {
        for text in ["", "0000:6b:01.1", "0000:6b:01.00", "0000:6b:01.0\tx"] {
            assert_eq!(parsed(text), Ok(None), "{text}");
        }
        let twice = format!("0000:6b:01.0 vf_token={TOKEN_TEXT} vf_token={TOKEN_TEXT}");
        for text in [
            "0000:6b:01.0 x",
            "0000:6b:01.0 vf_token=",
            "0000:6b:01.0 vf_token=5f2e6a9e93a1-4f0a-9b3e-3d8f0c1b2a01-xx",
            &twice,
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
