//! A small mutator that knows nothing of any format.

use rand::Rng;
use rand::rngs::StdRng;

/// Numbers at which things change.
const NUMBERS: [u64; 14] = [
    0,
    1,
    7,
    16,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// A new input from one of `corpus` (not empty), at most `longest` bytes.
pub fn mutate(corpus: &[Vec<u8>], longest: usize, dice: &mut StdRng) -> Vec<u8> {
    let any = |dice: &mut StdRng| corpus[dice.random_range(0..corpus.len())].clone();
    let mut input = any(dice);
    for _ in 0..dice.random_range(1..=6) {
        let at = dice.random_range(0..=input.len());
        match dice.random_range(0..9) {
            // Nothing to change in nothing.
            0..=3 if input.is_empty() => input.push(dice.random()),
            0 => input[at.min(at.max(1) - 1)] ^= 1 << dice.random_range(0..8),
            1 => input[at.min(at.max(1) - 1)] = dice.random(),
            2 => input.truncate(at),
            3 => {
                let end = dice.random_range(at..=input.len());
                input.drain(at..end.min(at + 64));
            }
            4 => number(&mut input, at, dice),
            5 => {
                // A piece of itself, again.
                let end = dice.random_range(at..=input.len());
                let piece = input[at..end.min(at + 256)].to_vec();
                let to = dice.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            6 => {
                // The head of one, the tail of another.
                let other = any(dice);
                let from = dice.random_range(0..=other.len());
                input.truncate(at);
                input.extend(&other[from..]);
            }
            7 => {
                let other = any(dice);
                let from = dice.random_range(0..=other.len());
                let end = dice.random_range(from..=other.len());
                input.splice(at..at, other[from..end.min(from + 128)].iter().copied());
            }
            _ => {
                let length = dice.random_range(1..=16);
                let bytes: Vec<u8> = (0..length).map(|_| dice.random()).collect();
                input.splice(at..at, bytes);
            }
        }
        input.truncate(longest);
    }
    input
}

/// Writes an interesting number over what is there: of one to eight bytes, either
/// end first, or as decimal digits.
fn number(input: &mut Vec<u8>, at: usize, dice: &mut StdRng) {
    let number = NUMBERS[dice.random_range(0..NUMBERS.len())];
    let bytes = match dice.random_range(0..3) {
        0 => number.to_be_bytes()[8 - (1 << dice.random_range(0..4))..].to_vec(),
        1 => number.to_le_bytes()[..1 << dice.random_range(0..4)].to_vec(),
        _ => number.to_string().into_bytes(),
    };
    let end = input.len().min(at + bytes.len());
    input.splice(at..end, bytes);
}
