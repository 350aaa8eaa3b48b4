//! The laws of the order: every window once per epoch, and the same step however it is divided.

use std::collections::HashMap;

use jaxgpt_loader::order::{Geometry, Order, Sampler};
use jaxgpt_loader::permute::{hash, permute};
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
fn every_window_of_an_epoch_exactly_once_for_all_small_sizes() {
    for n in 1..=5000 {
        assert_bijection(n, n ^ 0xabc, n % 3);
    }
}

#[test]
fn every_window_of_an_epoch_exactly_once_for_primes_powers_and_their_neighbours() {
    for n in [7919, 65_535, 65_536, 65_537, 104_729, 262_144, 999_983] {
        for (seed, epoch) in [(0, 0), (0, 1), (u64::MAX, u64::MAX)] {
            assert_bijection(n, seed, epoch);
        }
    }
}

#[test]
fn enormous_epochs_stay_in_range() {
    for n in [u64::MAX, 1 << 63, (1 << 63) + 1] {
        assert!((0..1000).chain(n - 1000..n).all(|index| permute(index, n, 1, 2) < n));
    }
}

#[test]
fn permutations_differ_between_epochs_and_seeds() {
    let base = shuffled(1000, 1, 0);
    for other in [shuffled(1000, 1, 1), shuffled(1000, 2, 0), shuffled(1000, 0, 1), (0..1000).collect()] {
        let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(equal < 8, "{equal} of 1000 in the same place; 1 is expected");
    }
}

/// All n! shuffles of a tiny epoch should be about equally frequent.
#[test]
fn tiny_epochs_reach_every_permutation_evenly() {
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

/// No trend (rank correlation), no memory (neighbouring steps), no fixed offset, uniform halves.
#[test]
fn a_permutation_shows_no_structure() {
    for n in [1000u64, 4096, 50_000] {
        let places = shuffled(n, 3, 4);
        let mean = (n - 1) as f64 / 2.0;
        let variance = ((n * n - 1) as f64) / 12.0;
        let correlation = |lag: usize| {
            let pairs = places.iter().zip(&places[lag..]);
            pairs.map(|(&a, &b)| (a as f64 - mean) * (b as f64 - mean)).sum::<f64>() / variance / n as f64
        };
        let trend = (0..n).zip(&places).map(|(i, &p)| (i as f64 - mean) * (p as f64 - mean)).sum::<f64>();
        let limit = 4.5 / (n as f64).sqrt();
        assert!((trend / variance / n as f64).abs() < limit, "a trend at n = {n}");
        assert!((1..20).all(|lag| correlation(lag).abs() < limit), "neighbours are related at n = {n}");
        let mut offsets = HashMap::new();
        places.windows(2).for_each(|pair| *offsets.entry(pair[1].wrapping_sub(pair[0])).or_insert(0) += 1);
        assert!(*offsets.values().max().unwrap() < 12, "one offset is too frequent at n = {n}");
    }
}

#[test]
fn random_starts_cover_the_data_evenly_and_to_its_ends() {
    let sampler = Sampler::new(Order::Random, 5, 110, 10).unwrap();
    let mut counts = [0u32; 100];
    (0..1_000_000).for_each(|sample| counts[sampler.start(sample) as usize] += 1);
    assert!(counts.iter().all(|count| count.abs_diff(10_000) < 500), "{counts:?}");
    assert_ne!(hash(0, 1), hash(1, 0));
}

#[test]
fn one_window_is_enough() {
    for order in [Order::Epoch, Order::Random, Order::Sequential] {
        let sampler = Sampler::new(order, 0, 11, 10).unwrap();
        assert!((0..100).all(|sample| sampler.start(sample) == 0));
    }
}

proptest! {
    /// Windows lie in the data, and an epoch has every one of them, wherever in the run it is.
    #[test]
    fn an_epoch_is_every_window(tokens in 2u64..3000, block in 1u64..40, seed: u64, epoch in 0u64..1000) {
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

    /// Put the processes' parts of every micro-batch side by side: the samples of the step, in order.
    #[test]
    fn parts_reassemble(accum in 1u64..6, rows in 1u64..6, world in 1u64..5, step in 0u64..1_000_000) {
        let micro_batch = rows * world;
        let geometry = |rank| Geometry { block: 1, micro_batch, accum, rank, world };
        let mut samples = vec![];
        for micro in 0..accum {
            for rank in 0..world {
                samples.extend((0..rows).map(|row| geometry(rank).sample(step, micro * rows + row)));
            }
        }
        let whole = Geometry { block: 1, micro_batch: accum * micro_batch, accum: 1, rank: 0, world: 1 };
        prop_assert_eq!(&samples, &(0..accum * micro_batch).map(|row| whole.sample(step, row)).collect::<Vec<_>>());
        prop_assert_eq!(samples[0], step * accum * micro_batch);
    }
}

#[test]
fn bad_geometry_is_a_sentence() {
    let good = Geometry { block: 8, micro_batch: 4, accum: 2, rank: 0, world: 2 };
    let said = |geometry: Geometry| geometry.check().unwrap_err().to_string();
    assert!(good.check().is_ok());
    assert_eq!(said(Geometry { block: 0, ..good }), "block = 0; must be 1 or more");
    assert_eq!(said(Geometry { micro_batch: 0, ..good }), "micro_batch = 0; must be 1 or more");
    assert_eq!(said(Geometry { accum: 0, ..good }), "accum = 0; must be 1 or more");
    assert_eq!(said(Geometry { world: 0, ..good }), "world = 0; must be 1 or more");
    assert_eq!(said(Geometry { rank: 2, ..good }), "rank = 2; must be less than world = 2");
    assert_eq!(said(Geometry { world: 3, ..good }), "micro_batch = 4 is not divisible by world = 3");
    let huge = Geometry { accum: u64::MAX, ..good };
    assert_eq!(said(huge), format!("accum = {} times micro_batch = 4 is too large", u64::MAX));
    assert!("shuffled".parse::<Order>().unwrap_err().to_string().contains("'epoch', 'random' or 'sequential'"));
}
