//! The way in which GPT-2's vocabulary writes bytes as printable characters.

/// How many characters stand for bytes: U+0000 to U+0143, some unused.
const N_CHARS: usize = 0x144;

/// Characters of all bytes, and bytes of all characters.
const TABLES: ([char; 256], [Option<u8>; N_CHARS]) = {
    let mut chars = ['\0'; 256];
    let mut bytes = [None; N_CHARS];
    let mut byte = 0;
    let mut shifted = 0x100;
    while byte < 256 {
        // Printable Latin-1 stands for itself, the rest lies from U+0100 on.
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte
        } else {
            shifted += 1;
            shifted - 1
        };
        chars[byte] = match char::from_u32(code as u32) {
            Some(c) => c,
            None => unreachable!(),
        };
        bytes[code] = Some(byte as u8);
        byte += 1;
    }
    (chars, bytes)
};
static CHARS: [char; 256] = TABLES.0;
static BYTES: [Option<u8>; N_CHARS] = TABLES.1;

/// The character that stands for a byte.
pub(super) fn byte_char(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// Appends a text, written by its bytes.
pub(super) fn encode(text: &str, out: &mut String) {
    out.extend(text.bytes().map(byte_char));
}

/// The bytes that a text stands for; the text itself if any of its characters
/// stands for no byte.
pub(super) fn decode(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| BYTES.get(c as usize).copied().flatten())
        .collect::<Option<_>>()
        .unwrap_or_else(|| text.as_bytes().to_vec())
}
