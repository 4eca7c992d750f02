/// What C's `strtoll(text, &end, 0)` makes of a text that it takes to the end and that fits.
pub fn strtoll(text: &[u8]) -> Option<i64> {
    let blanks = text.iter().take_while(|b| b" \t\n\r\x0b\x0c".contains(b)).count();
    let mut rest = &text[blanks..];
    let mut sign = 1i128;
    if let Some(first @ (b'+' | b'-')) = rest.first() {
        sign = if *first == b'-' { -1 } else { 1 };
        rest = &rest[1..];
    }
    let mut base = 10;
    // "0x" with no hexadecimal digit behind it is a zero, and an "x" that is left over.
    if rest.len() > 2 && rest[0] == b'0' && rest[1] | 0x20 == b'x' {
        base = 16;
        rest = &rest[2..];
    } else if rest.first() == Some(&b'0') {
        base = 8;
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0i128;
    for &byte in rest {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        if digit >= base {
            return None;
        }
        // Far above what fits; the sum must not leave its own type.
        sum = (sum * i128::from(base) + i128::from(digit)).min(1 << 100);
    }
    i64::try_from(sign * sum).ok()
}

#[cfg(test)]
mod tests {
    use super::strtoll;

    #[test]
    fn as_the_manual_says() {
        for (text, want) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("00", Some(0)),
            (" \t\r+42", Some(42)),
            ("0X1f", Some(31)),
            ("-0x8000000000000000", Some(i64::MIN)),
            ("0777", Some(511)),
            ("08", None),
            ("0x", None),
            ("x", None),
            ("", None),
            (" ", None),
            ("-", None),
            ("--1", None),
            ("- 1", None),
            ("1 ", None),
            ("1a", None),
            ("1\0", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("99999999999999999999999999999999999999999999999999999999999999", None),
        ] {
            assert_eq!(strtoll(text.as_bytes()), want, "{text:?}");
        }
    }
}
