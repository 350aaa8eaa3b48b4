//! A seeded shuffle of `0..n` that is computed, not stored: any position in O(1) time and without memory.
//!
//! An alternating Feistel network is a bijection on the numbers of `bits` bits, whatever its round function is. A value
//! outside `0..n` goes through the network once more (cycle walking), which keeps it a bijection on `0..n`. Fewer than
//! half of the values can be outside, so a value needs less than two passes on average.

/// With 24 rounds, even an epoch of seven windows takes all its 5,040 orders equally often. With 8, as is common for
/// large domains, the orders of five windows are visibly uneven. An even number restores the widths of the halves.
const ROUNDS: u64 = 24;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The position of `index` in the shuffle of `0..n` for `seed` and `epoch`. `index` must be less than `n`.
#[must_use]
pub fn permute(index: u64, n: u64, seed: u64, epoch: u64) -> u64 {
    debug_assert!(index < n);
    let bits = u64::BITS - (n - 1).leading_zeros();
    let key = hash(seed, epoch);
    let mut value = feistel(index, bits, key);
    while value >= n {
        value = feistel(value, bits, key);
    }
    value
}

/// A hash of two numbers, uniform over 64 bits (the finalizer of SplitMix64, applied after each input).
#[must_use]
pub fn hash(seed: u64, counter: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)) ^ counter)
}

/// One pass over `bits` bits. The halves swap their widths each round, so an odd number of bits needs no padding.
fn feistel(value: u64, bits: u32, key: u64) -> u64 {
    let mut low_bits = bits / 2;
    let mut high_bits = bits - low_bits;
    let mut low = value & mask(low_bits);
    let mut high = value >> low_bits;
    for round in 0..ROUNDS {
        let round_key = key.wrapping_add(round.wrapping_mul(GOLDEN));
        let mixed = (high ^ mix(low ^ round_key)) & mask(high_bits);
        (low, high) = (mixed, low);
        (low_bits, high_bits) = (high_bits, low_bits);
    }
    high << low_bits | low
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1 // half of at most 64 bits: never the full width
}

fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(GOLDEN);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
