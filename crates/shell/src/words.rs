//! Lines into words, bytes into text and back.
//!
//! Words are separated by blanks; `'...'` is taken literally, `"..."` keeps blanks. Outside of single quotes
//! `\xHH` is a byte, `\\ \" \' \n \r \t \0` and a backslash before a blank mean what they do elsewhere; any other
//! backslash stands for itself.

/// What cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a quote {0} that is not closed")]
pub struct OpenQuote(char);

/// Splits a line into words and resolves their escapes.
pub fn split(line: &str) -> Result<Vec<Vec<u8>>, OpenQuote> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let plain = &rest[..c.len_utf8()];
        let mut taken = plain.len();
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '\\') => {
                let (bytes, len) = escape_sequence(rest);
                word.get_or_insert_default().extend_from_slice(&bytes);
                taken = len;
            }
            _ => word.get_or_insert_default().extend_from_slice(plain.as_bytes()),
        }
        rest = &rest[taken..];
    }
    match quote {
        Some(open) => Err(OpenQuote(open)),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

/// Resolves the escapes of one word that a real shell has split already.
pub fn unescape(word: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let (resolved, len) = escape_sequence(&rest[at..]);
        bytes.extend_from_slice(&resolved);
        rest = &rest[at + len..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// What the escape sequence at the start of `text` stands for, and its length.
fn escape_sequence(text: &str) -> (Vec<u8>, usize) {
    let byte = match text.as_bytes().get(1) {
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'0') => 0,
        Some(&c @ (b'\\' | b'"' | b'\'' | b' ')) => c,
        Some(b'x') => {
            let hex = text.get(2..4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            return hex.map_or((b"\\".to_vec(), 1), |byte| (vec![byte], 4));
        }
        _ => return (b"\\".to_vec(), 1),
    };
    (vec![byte], 2)
}

/// Bytes as text that [`split`] and [`unescape`] turn into the same bytes again. `all` = every byte as `\xHH`.
pub fn escape(bytes: &[u8], all: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' | b'"' if !all => text.extend(['\\', char::from(byte)]),
            0x20..=0x7e if !all => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        split(line).unwrap()
    }

    #[test]
    fn lines_into_words() {
        let want = |words: &[&[u8]]| words.iter().map(|w| w.to_vec()).collect::<Vec<_>>();
        for (line, expected) in [
            ("", &[][..]),
            ("  get h   s ", &[&b"get"[..], b"h", b"s"]),
            ("set h '' \"\"", &[b"set", b"h", b"", b""]),
            (r#"a"b c"'d e'f"#, &[b"ab cd ef"]),
            (r"a\ b \x00\xfF \n\t \q \x4 \\", &[b"a b", b"\x00\xff", b"\n\t", b"\\q", b"\\x4", b"\\"]),
            (r#""say \"hi\" \x21""#, &[b"say \"hi\" !"]),
            (r"'\x21'", &[br"\x21"]),
            ("h\u{e9}", &["h\u{e9}".as_bytes()]),
        ] {
            assert_eq!(words(line), want(expected), "{line}");
        }
        assert_eq!(split("a 'b"), Err(OpenQuote('\'')));
        assert_eq!(split("a \"b\\\""), Err(OpenQuote('"')));
    }

    #[test]
    fn every_byte_survives() {
        let all: Vec<u8> = (0..=255).collect();
        for every in [false, true] {
            let text = escape(&all, every);
            assert_eq!(unescape(&text), all);
            assert_eq!(words(&format!("\"{text}\"")), std::slice::from_ref(&all));
        }
        assert_eq!(escape(b"a\"\\\x01", false), r#"a\"\\\x01"#);
        assert_eq!(unescape("plain"), b"plain");
    }
}
