//! Where a PCI function is: domain, bus, device and function, as `lspci -D` writes it.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// `0000:03:00.0`. The order is that of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PciAddress {
    /// 16 bits in hardware; what sits behind a VMD controller gets domains from 0x10000 on.
    domain: u32,
    bus: u8,
    /// 0 to 31.
    device: u8,
    /// 0 to 7.
    function: u8,
}

/// Why a text is no address; it reads behind `"TEXT" is no PCI address: `.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "\"{text}\" is no PCI address: {why}; write one such as 0000:03:00.0 or 03:00.0 (\"isoplane nics\" lists them)"
)]
pub(crate) struct AddressError {
    text: String,
    why: String,
}

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |why: String| AddressError { text: text.to_owned(), why };
        let (slot, function) =
            text.rsplit_once('.').ok_or_else(|| refuse("there is no .FUNCTION at its end".into()))?;
        let parts: Vec<&str> = slot.split(':').collect();
        let (domain, bus, device) = match parts[..] {
            [domain, bus, device] => (domain, bus, device),
            [bus, device] => ("0", bus, device),
            _ => return Err(refuse("it has not the form DOMAIN:BUS:DEVICE.FUNCTION".into())),
        };
        let number = |what: &str, digits: &str, longest: usize, most: u32| {
            let hexadecimal = (1..=longest).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            // Of 1 to 8 hexadecimal digits there is always a number.
            let found = hexadecimal.then(|| u32::from_str_radix(digits, 16).ok()).flatten();
            found.filter(|found| *found <= most).ok_or_else(|| {
                refuse(format!("its {what} \"{digits}\" is no hexadecimal number from 0 to {most:x}"))
            })
        };
        Ok(Self {
            domain: number("domain", domain, 8, u32::MAX)?,
            bus: number("bus", bus, 2, 0xFF)? as u8,
            device: number("device", device, 2, 0x1F)? as u8,
            function: number("function", function, 1, 7)? as u8,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_name_the_same_function() {
        let parse = |text: &str| text.parse::<PciAddress>().unwrap().to_string();
        assert_eq!(parse("0000:03:00.0"), "0000:03:00.0");
        assert_eq!(parse("03:00.0"), "0000:03:00.0");
        assert_eq!(parse("FFFF:FF:1F.7"), "ffff:ff:1f.7");
        assert_eq!(parse("10000:e1:0.0"), "10000:e1:00.0");
        assert_eq!(parse("3:0.1"), "0000:03:00.1");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("", "no .FUNCTION"),
            ("0000:03:00", "no .FUNCTION"),
            ("03.0", "the form"),
            ("1:2:3:4.0", "the form"),
            ("0000:03:00.8", "its function \"8\" is no hexadecimal number from 0 to 7"),
            ("0000:03:20.0", "its device \"20\" is no hexadecimal number from 0 to 1f"),
            ("0000:103:00.0", "its bus \"103\" is no hexadecimal number from 0 to ff"),
            ("x:03:00.0", "its domain \"x\""),
            ("123456789:03:00.0", "its domain"),
            ("+1:03:00.0", "its domain \"+1\""),
            (":03:00.0", "its domain \"\""),
            ("03:00.", "its function \"\""),
        ] {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("such as 0000:03:00.0"), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    proptest! {
        #[test]
        fn property_an_address_survives_being_written(domain: u32, bus: u8, device in 0_u8..32, function in 0_u8..8) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse::<PciAddress>(), Ok(address));
            let short = format!("{bus:x}:{device:x}.{function}");
            prop_assert_eq!(short.parse::<PciAddress>(), Ok(PciAddress { domain: 0, bus, device, function }));
        }

        #[test]
        fn property_any_text_is_read_or_refused(text in "[0-9a-fA-F:.x +-]{0,16}") {
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string().parse::<PciAddress>(), Ok(address));
            }
        }
    }
}
