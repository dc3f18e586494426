//! Texts of many kinds on which two tokenizers are compared: scripts, code, numbers, runs of one character, characters that
//! few vocabularies have, text around added tokens, and tokens in a row.
//!
//! Invariant: the same texts on every machine; chance is a fixed sequence.

use super::super::Tokenizer;

/// Texts of scripts, code and edges.
const TEXTS: &[&str] = &[
    "Once upon a time, a red fox lived by the river. It couldn't swim, and it didn't mind.",
    "THE END of Part II: we'll see what they've DONE, I'm sure it's been 12,345.67 or -0.5e-10 %.",
    "fn main() -> Result<(), Box<dyn Error>> {\n    let xs: Vec<u32> = (0..10).filter(|x| x % 2 == 0).collect();\n\tOk(())\n}\n",
    "def f(x, *args, **kw):\n    \"\"\"Doc.\"\"\"\n    return [a_b for a_b in x if a_b != '\\n']  # done\n\n\nclass A(B): pass",
    "#include <stdio.h>\r\nint main(void){char *s=\"\\x41\";for(;;){printf(\"%5.2f\\n\",*s++);}}\r\n\r\n",
    "SELECT a.*, COUNT(*) FROM t AS a WHERE x<>'it''s' GROUP BY 1 -- done\n{\"k\":[1,2,null],\"é\":\"\\u00e9\"}",
    "const f = async (x) => { await g(`${x}`); return x?.y ?? 0; }; /* ok */ <div class=\"a-b\">&amp;</div>",
    "L'été dernier, la cigogne mangeait; Größe, Straße, naïve, Ångström, œuvre, İstanbul, ĳ, ſ, ﬁ, ﬀ.",
    "快速的棕色狐狸跳过懒狗。「日本語のテキスト」、カタカナ、ひらがな、漢字。한국어 문장입니다. 繁體中文,全形12３!",
    "Съешь же ещё этих мягких французских булок. Ελληνικά, Ὦ ἄνδρες. עברית שָׁלוֹם. العربية مَرْحَبًا. हिन्दी में नमस्ते। ไทย ภาษา. தமிழ்",
    "😀👍🏽👩‍👩‍👧‍👦🇩🇪 ☕️ ∑∫√π≠∞ ½ ² ₃ ™ … — “quotes” ‘single’ «guillemets» \u{FFFD}\u{FEFF}\u{200B}\u{200D}\u{AD}",
    "e\u{301}\u{327} vs é; A\u{30A} Å \u{212B}; 각 vs 각; \u{1D15E} \u{10FFFF} \u{F0000} \u{E000} \0\u{1}\u{7F}\u{80}\u{9F}\u{A0}\u{2028}",
    "",
    " ",
    "  two  spaces   three    four\t\ttabs \n \n\n  \r\n\r\r\n \u{3000}\u{2003}\u{85} end   ",
    "\n\n\n leading and trailing \n\n",
    "1 12 123 1234 12345 1234567890 3.14159 1e9 0xFF 0b1010 ٣٤٥ ५६७ Ⅳ ①",
    "a_b-c.d/e\\f|g~h`i@j#k$l%m^n&o*p(q)r+s=t[u]v{w}x;y:z\"'<>,?!",
    "<0x0A><0xE9>▁under▁line ▁ Ġword Ċ ĉ <s></s><unk><pad>[CLS]",
    "https://example.com/a/b?c=d&e=f%20g#h user.name+tag@mail.example.co.uk 2024-02-29T23:59:60Z",
];
/// Bytes of a text of one piece, without a place to split it.
const LONG: usize = 2000;
/// Texts of characters by chance.
const RANDOM: u32 = 200;
/// Tokens that are put in a row, at most.
const TOKENS: usize = 30_000;

/// All texts that depend on nothing.
pub(super) fn texts() -> Vec<String> {
    let mut texts: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    texts.extend(["a", " ", "\n", "é", "漢", "ab", "=-", "0", "😀"].map(|piece| piece.repeat(LONG / piece.len())));
    texts.push(TEXTS.iter().flat_map(|text| text.chars()).filter(|c| c.is_alphabetic()).collect());
    let mut chance = Chance(1);
    for number in 0..RANDOM {
        // ASCII, Latin and what follows, the first plane, and all.
        let limit = [0x80, 0x400, 0x1_0000, 0x11_0000][number as usize % 4];
        texts.push((0..number % 60).filter_map(|_| char::from_u32(chance.below(limit))).collect());
    }
    texts
}

/// Texts around an added token.
pub(super) fn around(token: &str) -> [String; 4] {
    let cut: String = token.chars().skip(1).collect();
    [
        token.to_owned(),
        format!("a{token}b {token} c\n{token}\n{token}{token}"),
        format!("{} {} {cut}{token}", token.to_uppercase(), token.to_lowercase()),
        format!("{cut} {}", token.chars().rev().collect::<String>()),
    ]
}

/// Tokens of a vocabulary in a row, as text: in the order of `ids`, and by chance.
pub(super) fn tokens(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let ids: Vec<i32> = ids.iter().filter_map(|id| i32::try_from(*id).ok()).collect();
    let mut chance = Chance(2);
    let by_chance: Vec<i32> =
        (0..TOKENS.min(2 * ids.len())).filter_map(|_| ids.get(chance.index(ids.len())).copied()).collect();
    let step = (ids.len() / TOKENS).max(1);
    let in_order: Vec<i32> = ids.iter().copied().step_by(step).collect();
    let rows = in_order.chunks(40).chain(by_chance.chunks(40));
    rows.filter_map(|row| tokenizer.decode(row, false).ok()).collect()
}

/// A fixed sequence of numbers.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(limit.max(1))) as u32
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(u32::try_from(len).unwrap_or(u32::MAX)) as usize
    }
}
