//! Integers as C's `strtoll` with base 0 reads them: what incr and the numeric checks take for a number.

/// The whole of `text` as an i64: leading white space, a sign, then decimal, `0x` hexadecimal or `0` octal.
/// None when anything is left over, nothing is there, or it does not fit.
pub fn parse(text: &[u8]) -> Option<i64> {
    let start = text.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r'))?;
    let (negative, digits) = match &text[start..] {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let (radix, digits) = match digits {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', _, ..] => (8, digits),
        _ => (10, digits),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |sum, &digit| {
        let digit = i64::from(char::from(digit).to_digit(radix)?);
        let sum = sum.checked_mul(i64::from(radix))?;
        if negative { sum.checked_sub(digit) } else { sum.checked_add(digit) }
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn like_strtoll_with_base_0() {
        for (text, want) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("+12", Some(12)),
            ("-12", Some(-12)),
            ("-0", Some(0)),
            (" \t\n\x0b\x0c\r12", Some(12)),
            ("0x1f", Some(31)),
            ("-0X1F", Some(-31)),
            ("017", Some(15)),
            ("00", Some(0)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("0x7fffffffffffffff", Some(i64::MAX)),
            ("-0x8000000000000000", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("0x8000000000000000", None),
            ("", None),
            ("   ", None),
            ("-", None),
            ("+-1", None),
            ("0x", None),
            ("08", None),
            ("12 ", None),
            ("1.0", None),
            ("1e3", None),
            ("abc", None),
            ("0b1", None),
            ("1\0", None),
            ("\u{663}", None),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text:?}");
        }
    }
}
