//! The order of samples: every window once per epoch, and a step that does not depend on how it is divided.

use std::collections::HashMap;

use jaxgpt_loader::order::permute::{hash, permute};
use jaxgpt_loader::order::{Geometry, Order, Sampler};
use proptest::prelude::*;

fn shuffled(n: u64, seed: u64, epoch: u64) -> Vec<u64> {
    (0..n).map(|index| permute(index, n, seed, epoch)).collect()
}

fn assert_bijection(n: u64, seed: u64, epoch: u64) {
    let mut seen = vec![false; n as usize];
    for value in shuffled(n, seed, epoch) {
        assert!(!std::mem::replace(&mut seen[value as usize], true), "{value} twice in 0..{n}");
    }
}

#[test]
fn permute_is_a_bijection_for_all_small_sizes() {
    for n in 1..=5000 {
        assert_bijection(n, n ^ 0xabc, n % 3);
    }
}

#[test]
fn permute_is_a_bijection_for_primes_and_powers_of_two() {
    for n in [7919, 65_535, 65_536, 65_537, 104_729, 262_144, 999_983] {
        for (seed, epoch) in [(0, 0), (0, 1), (u64::MAX, u64::MAX)] {
            assert_bijection(n, seed, epoch);
        }
    }
}

#[test]
fn permute_stays_in_range_for_huge_sizes() {
    for n in [u64::MAX, 1 << 63, (1 << 63) + 1] {
        assert!((0..1000).chain(n - 1000..n).all(|index| permute(index, n, 1, 2) < n));
    }
}

#[test]
fn permute_depends_on_epoch_and_seed() {
    let base = shuffled(1000, 1, 0);
    for other in [shuffled(1000, 1, 1), shuffled(1000, 2, 0), shuffled(1000, 0, 1), (0..1000).collect()] {
        let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(equal < 8, "{equal} of 1000 at the same position; 1 is expected");
    }
}

/// All n! shuffles of a tiny epoch should be about equally frequent.
#[test]
fn permute_reaches_all_orders_of_tiny_epochs_evenly() {
    for (n, permutations) in [(2, 2), (3, 6), (4, 24), (5, 120), (6, 720)] {
        let draws = permutations * 300;
        let mut counts = HashMap::new();
        for epoch in 0..draws {
            *counts.entry(shuffled(n, 7, epoch)).or_insert(0u64) += 1;
        }
        assert_eq!(counts.len() as u64, permutations, "permutations of {n}");
        let squares: f64 = counts.values().map(|&count| (count as f64 - 300.0).powi(2) / 300.0).sum();
        let freedom = (permutations - 1) as f64;
        assert!(squares < freedom + 5.0 * (2.0 * freedom).sqrt(), "n = {n}: chi² {squares} for {freedom}");
    }
}

/// No trend (rank correlation), no memory (neighboring steps), no fixed offset, uniform halves.
#[test]
fn permute_shows_no_structure() {
    for n in [1000u64, 4096, 50_000] {
        let positions = shuffled(n, 3, 4);
        let mean = (n - 1) as f64 / 2.0;
        let variance = ((n * n - 1) as f64) / 12.0;
        let correlation = |lag: usize| {
            let pairs = positions.iter().zip(&positions[lag..]);
            pairs.map(|(&a, &b)| (a as f64 - mean) * (b as f64 - mean)).sum::<f64>() / variance / n as f64
        };
        let trend = (0..n).zip(&positions).map(|(i, &p)| (i as f64 - mean) * (p as f64 - mean)).sum::<f64>();
        let limit = 4.5 / (n as f64).sqrt();
        assert!((trend / variance / n as f64).abs() < limit, "a trend at n = {n}");
        assert!((1..20).all(|lag| correlation(lag).abs() < limit), "neighbors are correlated at n = {n}");
        let mut offsets = HashMap::new();
        positions.windows(2).for_each(|pair| *offsets.entry(pair[1].wrapping_sub(pair[0])).or_insert(0) += 1);
        assert!(*offsets.values().max().unwrap() < 12, "one offset is too frequent at n = {n}");
    }
}

#[test]
fn random_starts_are_uniform_over_the_data() {
    let sampler = Sampler::new(Order::Random, 5, 110, 10).unwrap();
    let mut counts = [0u32; 100];
    (0..1_000_000).for_each(|sample| counts[sampler.start(sample) as usize] += 1);
    assert!(counts.iter().all(|count| count.abs_diff(10_000) < 500), "{counts:?}");
    assert_ne!(hash(0, 1), hash(1, 0));
}

#[test]
fn data_of_one_window_is_enough() {
    for order in [Order::Epoch, Order::Random, Order::Sequential] {
        let sampler = Sampler::new(order, 0, 11, 10).unwrap();
        assert!((0..100).all(|sample| sampler.start(sample) == 0));
    }
}

proptest! {
    /// Windows are within the data, and every epoch of the run has each of them once.
    #[test]
    fn an_epoch_has_every_window_once(tokens in 2u64..3000, block in 1u64..40, seed: u64, epoch in 0u64..1000) {
        prop_assume!(tokens > block);
        let windows = (tokens - 1) / block;
        for order in [Order::Epoch, Order::Sequential] {
            let sampler = Sampler::new(order, seed, tokens, block).unwrap();
            let mut starts: Vec<_> = (epoch * windows..(epoch + 1) * windows).map(|k| sampler.start(k)).collect();
            starts.sort_unstable();
            prop_assert_eq!(starts, (0..windows).map(|window| window * block).collect::<Vec<_>>());
        }
        let random = Sampler::new(Order::Random, seed, tokens, block).unwrap();
        prop_assert!((0..100).all(|sample| random.start(sample) + block < tokens));
    }

    /// The rows of all processes, concatenated for every micro-batch, are the samples of the step in order.
    #[test]
    fn processes_together_read_the_whole_step(accum in 1u64..6, rows in 1u64..6, world in 1u64..5, step in 0u64..1_000_000) {
        let micro_batch = rows * world;
        let geometry = |rank| Geometry { block: 1, micro_batch, accum, rank, world };
        let mut samples = vec![];
        for micro in 0..accum {
            for rank in 0..world {
                samples.extend((0..rows).map(|row| geometry(rank).sample(step, micro * rows + row)));
            }
        }
        let single = Geometry { block: 1, micro_batch: accum * micro_batch, accum: 1, rank: 0, world: 1 };
        prop_assert_eq!(&samples, &(0..accum * micro_batch).map(|row| single.sample(step, row)).collect::<Vec<_>>());
        prop_assert_eq!(samples[0], step * accum * micro_batch);
    }
}

#[test]
fn invalid_geometry_is_explained() {
    let valid = Geometry { block: 8, micro_batch: 4, accum: 2, rank: 0, world: 2 };
    let message = |geometry: Geometry| geometry.check().unwrap_err().to_string();
    assert!(valid.check().is_ok());
    assert_eq!(message(Geometry { block: 0, ..valid }), "block = 0; must be 1 or more");
    assert_eq!(message(Geometry { micro_batch: 0, ..valid }), "micro_batch = 0; must be 1 or more");
    assert_eq!(message(Geometry { accum: 0, ..valid }), "accum = 0; must be 1 or more");
    assert_eq!(message(Geometry { world: 0, ..valid }), "world = 0; must be 1 or more");
    assert_eq!(message(Geometry { rank: 2, ..valid }), "rank = 2; must be less than world = 2");
    assert_eq!(message(Geometry { world: 3, ..valid }), "micro_batch = 4 is not divisible by world = 3");
    let huge = Geometry { accum: u64::MAX, ..valid };
    assert_eq!(message(huge), format!("accum = {} times micro_batch = 4 is too large", u64::MAX));
    assert!("shuffled".parse::<Order>().unwrap_err().to_string().contains("'epoch', 'random' or 'sequential'"));
}
