//! Attribute values of ops and their text: `{eps=1e-6, mask=block_causal:4, perm=[0, 2, 1], bias}`.
//!
//! Invariant: printing an attribute and parsing the text gives the same value; a default is not printed.

use crate::lex::list_text;
use crate::types::DType;
use std::fmt;
use std::str::FromStr;

/// A static attention mask: which cache rows a query at absolute row `i` may attend (besides the visible range).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mask {
    /// Every row.
    Full,
    /// Rows up to and including `i`.
    Causal,
    /// Rows of blocks of this size up to and including the block of `i`.
    BlockCausal(u32),
    /// Rows that are at most half of this window away from `i`.
    Local(u32),
}

impl Mask {
    /// The number of rows in whose multiples a prefix of a sequence does not depend on what follows it; `None` where every
    /// row sees all others.
    pub fn prefix_unit(self) -> Option<usize> {
        match self {
            Mask::Full => None,
            Mask::Causal => Some(1),
            Mask::BlockCausal(block) => usize::try_from(block).ok(),
            Mask::Local(_) => None,
        }
    }

    /// Whether a query may attend every row before the last one that it may attend: what kernels and caches rely on.
    pub fn is_prefix(self) -> bool {
        !matches!(self, Mask::Local(_))
    }

    /// One past the last row that a query at absolute row `row` may attend, before the visible range cuts it.
    pub fn end(self, row: usize) -> usize {
        match self {
            Mask::Full => usize::MAX,
            Mask::Causal => row + 1,
            Mask::BlockCausal(b) => (row / b as usize + 1) * b as usize,
            Mask::Local(window) => row + window as usize / 2 + 1,
        }
    }

    /// Whether a query at absolute row `row` may attend row `key`.
    pub fn sees(self, row: usize, key: usize) -> bool {
        let start = if let Mask::Local(window) = self { row.saturating_sub(window as usize / 2) } else { 0 };
        (start..self.end(row)).contains(&key)
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mask::Full => write!(f, "full"),
            Mask::Causal => write!(f, "causal"),
            Mask::BlockCausal(b) => write!(f, "block_causal:{b}"),
            Mask::Local(window) => write!(f, "local:{window}"),
        }
    }
}

impl FromStr for Mask {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "full" => Ok(Mask::Full),
            "causal" => Ok(Mask::Causal),
            _ => {
                let number = |kind: &str| s.strip_prefix(kind).and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                let block = number("block_causal:").map(Mask::BlockCausal);
                block
                    .or_else(|| number("local:").map(Mask::Local))
                    .ok_or_else(|| format!("`{s}` is not a mask; use full, causal, block_causal:N or local:N"))
            }
        }
    }
}

/// What a `linear` does with its product before it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Post {
    /// Stores it.
    #[default]
    None,
    /// Adds the residual operand.
    Add,
    /// `silu(y₀) · y₁` of two weights (gate, up).
    SwiGlu,
}

impl FromStr for Post {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "add" => Ok(Post::Add),
            "swiglu" => Ok(Post::SwiGlu),
            _ => Err(format!("`{s}` is not an epilogue; use add or swiglu")),
        }
    }
}

/// A value that can stand in an attribute list. Implemented once per attribute type; the op table is the only user.
pub(crate) trait AttrValue: Sized {
    /// The text after `name=`; `Some("")` for a bare flag, `None` when the value is the default and not printed.
    fn print(&self) -> Option<String>;
    /// The value for the text, or for an absent attribute.
    fn parse(text: Option<&str>) -> Result<Self, String>;
}

fn required<T: FromStr>(text: Option<&str>, what: &str) -> Result<T, String> {
    let text = text.ok_or("is required")?;
    text.parse().map_err(|_| format!("`{text}` is not {what}"))
}

/// Prints a float so that it parses back to the same bits, in the shorter of plain and scientific notation.
pub(crate) fn float_text(x: f32) -> String {
    let (plain, scientific) = (format!("{x}"), format!("{x:e}"));
    if plain.len() <= scientific.len() { plain } else { scientific }
}

impl AttrValue for f32 {
    fn print(&self) -> Option<String> {
        Some(float_text(*self))
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        let x: f32 = required(text, "a number")?;
        if x.is_finite() { Ok(x) } else { Err("must be finite".into()) }
    }
}

impl AttrValue for Option<f32> {
    fn print(&self) -> Option<String> {
        self.map(float_text)
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        text.map(|t| f32::parse(Some(t))).transpose()
    }
}

impl AttrValue for u32 {
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        match required(text, "a positive whole number")? {
            0 => Err("must be positive".into()),
            n => Ok(n),
        }
    }
}

impl AttrValue for i64 {
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        required(text, "a whole number")
    }
}

impl AttrValue for Option<u32> {
    fn print(&self) -> Option<String> {
        self.map(|n| n.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        text.map(|t| required(Some(t), "a whole number")).transpose()
    }
}

/// The elements of a list's text.
fn list_items(text: Option<&str>) -> Result<impl Iterator<Item = &str>, String> {
    let text = text.ok_or("is required")?;
    let items = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let items = items.ok_or_else(|| format!("`{text}` is not a list; write [{text}]"))?;
    Ok(items.split(", ").filter(|item| !item.is_empty()))
}

impl AttrValue for Vec<i64> {
    fn print(&self) -> Option<String> {
        Some(list_text(self))
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        list_items(text)?.map(|item| required(Some(item), "a whole number")).collect()
    }
}

impl AttrValue for Vec<f32> {
    fn print(&self) -> Option<String> {
        Some(list_text(self.iter().copied().map(float_text)))
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        list_items(text)?.map(|item| f32::parse(Some(item))).collect()
    }
}

impl AttrValue for bool {
    fn print(&self) -> Option<String> {
        self.then(String::new)
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        match text {
            None => Ok(false),
            Some("") => Ok(true),
            Some(_) => Err("is a flag and takes no value".into()),
        }
    }
}

impl AttrValue for DType {
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        text.ok_or("is required")?.parse()
    }
}

impl AttrValue for Option<Mask> {
    fn print(&self) -> Option<String> {
        self.map(|m| m.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        text.map(str::parse).transpose()
    }
}

impl AttrValue for Mask {
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        text.ok_or("is required")?.parse()
    }
}

impl AttrValue for Post {
    fn print(&self) -> Option<String> {
        match self {
            Post::None => None,
            Post::Add => Some("add".into()),
            Post::SwiGlu => Some("swiglu".into()),
        }
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        text.map_or(Ok(Post::None), str::parse)
    }
}

impl AttrValue for Box<str> {
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
    fn parse(text: Option<&str>) -> Result<Self, String> {
        match text {
            Some(t) if !t.is_empty() => Ok(t.into()),
            _ => Err("is required".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AttrValue;
    use crate::lex::Lexer;

    /// The value after a way through the text format.
    fn through_text<T: AttrValue>(value: &T) -> Result<T, String> {
        let text = value.print().expect("lists have no default");
        let mut lexer = Lexer::new(&text);
        T::parse(Some(&lexer.attr_text().map_err(|e| e.to_string())?))
    }

    #[test]
    fn lists_round_trip() {
        for list in [vec![], vec![0], vec![0, 2, -1, i64::MAX, i64::MIN]] {
            assert_eq!(through_text(&list), Ok(list));
        }
        for list in [vec![], vec![0.5], vec![1e-6, -0.0, 3.0, f32::MIN_POSITIVE, f32::MAX, 1e-45]] {
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&through_text(&list).unwrap()), bits(&list));
        }
        assert_eq!(vec![0i64, 2, 1].print().as_deref(), Some("[0, 2, 1]"));
    }

    #[test]
    fn what_is_no_list_says_so() {
        let parse = |text| Vec::<i64>::parse(text).unwrap_err();
        assert_eq!(parse(None), "is required");
        assert_eq!(parse(Some("3")), "`3` is not a list; write [3]");
        assert_eq!(parse(Some("[1, x]")), "`x` is not a whole number");
        assert_eq!(parse(Some("[9223372036854775808]")), "`9223372036854775808` is not a whole number");
        assert_eq!(Vec::<f32>::parse(Some("[inf]")).unwrap_err(), "must be finite");
    }
}
