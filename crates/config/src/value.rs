//! Text to value and back. Errors say what was expected, in the words of an operator.

use pegasus_types::Node;

/// Longest list accepted in one value.
const LIST_ITEMS_MAX: usize = 1024;

/// A type that a key can have.
pub trait Setting: Sized {
    /// Name of the type in Pegasus's `/config` answer (shell-and-http.md 4.2).
    const KIND: &'static str;

    /// Reads trimmed text; the error says what was expected.
    fn parse(text: &str) -> Result<Self, String>;

    fn to_text(&self) -> String;

    /// Why `self` and `other` may not stand in one list.
    fn clash(&self, _other: &Self) -> Option<String> {
        None
    }
}

macro_rules! whole_numbers {
    ($($ty:ty = $kind:literal),*) => { $(
        impl Setting for $ty {
            const KIND: &'static str = $kind;
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("expected a whole number from {} to {}", <$ty>::MIN, <$ty>::MAX))
            }
            fn to_text(&self) -> String {
                self.to_string()
            }
        }
    )* };
}
whole_numbers!(
    u16 = "FV_UINT32",
    u32 = "FV_UINT32",
    i32 = "FV_INT32",
    u64 = "FV_UINT64",
    i64 = "FV_INT64",
    usize = "FV_UINT64"
);

impl Setting for bool {
    const KIND: &'static str = "FV_BOOL";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        }
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Setting for f64 {
    const KIND: &'static str = "FV_DOUBLE";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .filter(|n: &f64| n.is_finite())
            .ok_or_else(|| "expected a number such as 0.5".to_owned())
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    const KIND: &'static str = "FV_STRING";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn to_text(&self) -> String {
        self.clone()
    }
}

impl Setting for Node {
    const KIND: &'static str = "FV_STRING";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "expected host:port, for example 127.0.0.1:34601".to_owned())
    }

    fn to_text(&self) -> String {
        self.to_string()
    }

    fn clash(&self, other: &Self) -> Option<String> {
        (self == other).then(|| format!("{self} stands twice"))
    }
}

/// Comma separated; wholly empty text is an empty list.
impl<T: Setting> Setting for Vec<T> {
    const KIND: &'static str = "FV_STRING";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if text.split(',').count() > LIST_ITEMS_MAX {
            return Err(format!("expected at most {LIST_ITEMS_MAX} items"));
        }
        let (mut items, mut wrong) = (Vec::new(), Vec::new());
        for (n, item) in (1..).zip(text.split(',').map(str::trim)) {
            match T::parse(item) {
                _ if item.is_empty() => wrong.push(format!("item {n} is empty")),
                Ok(value) => {
                    wrong.extend(items.iter().find_map(|earlier| value.clash(earlier)));
                    items.push(value);
                }
                Err(why) => wrong.push(format!("item {n} ({item:?}): {why}")),
            }
        }
        if wrong.is_empty() { Ok(items) } else { Err(wrong.join("; ")) }
    }

    fn to_text(&self) -> String {
        self.iter().map(Setting::to_text).collect::<Vec<_>>().join(",")
    }
}

/// `tag:path`, an item of `[replication] data_dirs` (operations.md D8). Tags and paths are unique in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaggedPath {
    pub tag: String,
    /// Without a slash at the end.
    pub path: std::path::PathBuf,
}

impl Setting for TaggedPath {
    const KIND: &'static str = "FV_STRING";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "expected tag:path, for example ssd1:/data/ssd1/pegasus".to_owned();
        let (tag, path) = text.split_once(':').ok_or_else(wrong)?;
        let (tag, path) = (tag.trim(), path.trim());
        if tag.is_empty() || path.is_empty() || path.contains(':') || tag.contains('/') {
            return Err(wrong());
        }
        let trimmed = path.trim_end_matches('/');
        Ok(Self { tag: tag.to_owned(), path: if trimmed.is_empty() { path } else { trimmed }.into() })
    }

    fn to_text(&self) -> String {
        format!("{}:{}", self.tag, self.path.display())
    }

    fn clash(&self, other: &Self) -> Option<String> {
        if self.tag == other.tag {
            Some(format!("tag {} stands twice", self.tag))
        } else if self.path == other.path {
            Some(format!("directory {} stands twice ({} and {})", self.path.display(), other.tag, self.tag))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars() {
        assert_eq!(u32::parse("7"), Ok(7));
        assert_eq!(u16::parse("65536").unwrap_err(), "expected a whole number from 0 to 65535");
        assert_eq!(i32::parse("-7"), Ok(-7));
        assert!(u32::parse("-1").is_err() && u32::parse("").is_err() && u32::parse("1.5").is_err());
        assert_eq!(bool::parse("true"), Ok(true));
        assert!(bool::parse("yes").is_err() && bool::parse("").is_err());
        assert!(f64::parse("NaN").is_err() && f64::parse("0.5").is_ok());
    }

    #[test]
    fn lists() {
        let nodes = Vec::<Node>::parse("a:1, b:2").unwrap();
        assert_eq!(nodes.to_text(), "a:1,b:2");
        assert!(Vec::<Node>::parse("").unwrap().is_empty());
        assert_eq!(
            Vec::<Node>::parse("a:1,,b").unwrap_err(),
            "item 2 is empty; item 3 (\"b\"): expected host:port, for example 127.0.0.1:34601"
        );
        assert_eq!(Vec::<Node>::parse("a:1,a:1").unwrap_err(), "a:1 stands twice");
        assert!(Vec::<u32>::parse(&"1,".repeat(2000)).is_err());
    }

    #[test]
    fn data_dirs() {
        let dirs = Vec::<TaggedPath>::parse("a:/x/, b:/y").unwrap();
        assert_eq!(dirs[0], TaggedPath { tag: "a".into(), path: "/x".into() });
        assert_eq!(dirs.to_text(), "a:/x,b:/y");
        for (bad, why) in [
            ("/x", "expected tag:path"),
            (":/x", "expected tag:path"),
            ("a:", "expected tag:path"),
            ("a:/x:/y", "expected tag:path"),
            ("a:/x,a:/y", "tag a stands twice"),
            ("a:/x,b:/x/", "directory /x stands twice (a and b)"),
        ] {
            let told = Vec::<TaggedPath>::parse(bad).unwrap_err();
            assert!(told.contains(why), "{bad}: {told}");
        }
    }
}
