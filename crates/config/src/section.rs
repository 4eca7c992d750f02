//! Declaration of a section, once: struct, defaults, key list, docs.

use crate::load::Loaded;
use crate::value::Setting;

/// A declared section. Several structs may declare keys of one section: each crate declares what it reads.
#[derive(Debug)]
pub struct SectionInfo {
    /// `meta_server`; a name that ends in `.*` stands for a family: `meta_server.apps.*`.
    pub name: &'static str,
    pub doc: &'static [&'static str],
    pub keys: &'static [KeyInfo],
    /// True = the keys are names that the operator chooses (`[pegasus.clusters]`); `keys` is empty then.
    pub open: bool,
    /// What stands in the default file: (section, its lines as key and value). Empty = the keys with their defaults.
    pub shown_as: &'static [(&'static str, &'static [(&'static str, &'static str)])],
}

#[derive(Debug)]
pub struct KeyInfo {
    pub name: &'static str,
    pub doc: &'static [&'static str],
    /// `FV_UINT32` and so on.
    pub kind: &'static str,
    /// Text of the default.
    pub default: fn() -> String,
    /// Value in the default file, usually with a variable; None = the default, commented out.
    pub template: Option<&'static str>,
}

/// Made by [`section!`](crate::section!).
pub trait Section: Sized + Default {
    const INFO: &'static SectionInfo;

    /// Reads each key; what is wrong is recorded and replaced by the default.
    fn read(reader: &mut Reader<'_>) -> Self;
}

/// Reads the keys of one section (or one member of a family).
#[derive(Debug)]
pub struct Reader<'a> {
    pub(crate) loaded: &'a mut Loaded,
    pub(crate) section: &'a str,
}

impl Reader<'_> {
    /// The value of `key`, or its default when it is absent or wrong. `range` says why a value is out of range.
    pub fn value<T: Setting>(&mut self, key: &str, default: T, range: impl Fn(&T) -> Option<String>) -> T {
        let Some(found) = self.loaded.find(self.section, key) else { return default };
        if found.has_variable() {
            return default; // recorded by `Loaded` together with all others of that name
        }
        let wrong = match T::parse(&found.text) {
            Ok(value) => match range(&value) {
                None => return value,
                Some(why) => why,
            },
            Err(why) => why,
        };
        let written = if found.text.is_empty() { "is empty".to_owned() } else { format!("= {}", found.text) };
        let (place, section) = (found.place.clone(), self.section);
        self.loaded.mistake_at(place, format!("[{section}] {key} {written}: {wrong}"));
        default
    }
}

/// Declares a section: a struct with public fields, its `Default`, and the [`Section`] that reads and documents it.
///
/// `key: Type = default [, in RANGE] [, template "text in the default file"];` under a doc comment that states
/// meaning, unit and bounds. For a family (`"meta_server.apps.*"`) say what the default file shows:
/// `shown as [("meta_server.apps.temp", [("app_name", "temp")])]`.
#[macro_export]
macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        $vis:vis struct $name:ident = $section:literal
        $(, shown as [ $( ($shown:literal, [ $( ($shown_key:literal, $shown_value:literal) ),* $(,)? ]) ),* $(,)? ])?
        {
            $(
                $(#[doc = $key_doc:literal])+
                $key:ident : $ty:ty = $default:expr $(, in $range:expr)? $(, template $template:literal)? ;
            )*
        }
    ) => {
        #[allow(
            rustdoc::broken_intra_doc_links,
            reason = "[section] in these texts is one of the file: they are printed there as well"
        )]
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $( $(#[doc = $key_doc])+ pub $key: $ty, )*
        }

        impl ::core::default::Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $crate::Section for $name {
            const INFO: &'static $crate::SectionInfo = &$crate::SectionInfo {
                name: $section,
                doc: &[$($doc),*],
                keys: &[ $( $crate::KeyInfo {
                    name: ::core::stringify!($key),
                    doc: &[$($key_doc),+],
                    kind: <$ty as $crate::Setting>::KIND,
                    default: || <$ty as $crate::Setting>::to_text(&$default),
                    template: $crate::section!(@optional $($template)?),
                } ),* ],
                open: false,
                shown_as: &[ $( $( ($shown, &[ $( ($shown_key, $shown_value) ),* ]) ),* )? ],
            };

            fn read(reader: &mut $crate::Reader<'_>) -> Self {
                Self { $(
                    $key: reader.value::<$ty>(::core::stringify!($key), $default, |_value| {
                        $( if !($range).contains(_value) {
                            return ::core::option::Option::Some(::std::format!(
                                "expected a value from {} to {}",
                                $crate::Setting::to_text(($range).start()),
                                $crate::Setting::to_text(($range).end()),
                            ));
                        } )?
                        ::core::option::Option::None
                    }),
                )* }
            }
        }
    };
    (@optional) => { ::core::option::Option::None };
    (@optional $text:literal) => { ::core::option::Option::Some($text) };
}

/// Declares an enum whose values have one spelling each in the file.
#[macro_export]
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $text:literal ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $( $(#[$variant_meta])* $variant, )+ }

        impl $crate::Setting for $name {
            const KIND: &'static str = "FV_STRING";

            fn parse(text: &str) -> ::core::result::Result<Self, ::std::string::String> {
                match text {
                    $( $text => ::core::result::Result::Ok(Self::$variant), )+
                    _ => ::core::result::Result::Err(::std::format!("expected one of {}", [$($text),+].join(", "))),
                }
            }

            fn to_text(&self) -> ::std::string::String {
                match self { $( Self::$variant => $text, )+ }.to_owned()
            }
        }
    };
}
