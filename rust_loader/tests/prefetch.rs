//! The ring: strict order, bounds, errors in the order of steps, and no thread that outlives it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use jaxgpt_loader::error::{Error, Result};
use jaxgpt_loader::prefetch::aligned::{AlignedBuffer, PAGE};
use jaxgpt_loader::prefetch::{Lease, Options, Prefetcher};

fn options(slots: usize, threads: usize, stop: u64) -> Options {
    Options { slots, threads, block_bytes: 1000, start: 0, stop, lease_timeout: Duration::from_millis(200) }
}

fn write_step(step: u64, buffer: &mut [u8]) -> Result<()> {
    buffer.fill(step as u8);
    Ok(())
}

fn take(prefetcher: &Prefetcher) -> Result<Option<Lease>> {
    prefetcher.next(&mut |_| true)
}

#[test]
fn steps_come_in_order_with_any_fill_time() {
    for threads in [1, 2, 7, 32] {
        let options = Options { start: 5, ..options(4, threads, 300) };
        let prefetcher = Prefetcher::start(options, |step, buffer| {
            std::thread::sleep(Duration::from_micros(step * 7919 % 300));
            write_step(step, buffer)
        });
        let prefetcher = prefetcher.unwrap();
        for step in 5..300 {
            let lease = take(&prefetcher).unwrap().unwrap();
            assert_eq!(lease.step(), step);
            assert!(lease.iter().all(|&byte| byte == step as u8));
        }
        assert!(take(&prefetcher).unwrap().is_none());
        assert!(take(&prefetcher).unwrap().is_none(), "the end stays the end");
    }
}

#[test]
fn buffers_are_aligned_reused_and_bounded() {
    let filled = Arc::new(AtomicUsize::new(0));
    let count = filled.clone();
    let prefetcher = Prefetcher::start(options(3, 2, 1000), move |step, buffer| {
        count.fetch_add(1, Ordering::SeqCst);
        write_step(step, buffer)
    });
    let prefetcher = prefetcher.unwrap();
    let addresses: Vec<usize> = prefetcher.buffers().iter().map(|&(address, _)| address).collect();
    assert_eq!(prefetcher.buffers().len(), 3);
    assert!(prefetcher.buffers().iter().all(|&(address, length)| address % PAGE == 0 && length == 1000));
    let mut kept = vec![take(&prefetcher).unwrap().unwrap()];
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(filled.load(Ordering::SeqCst), 3, "workers stop when no buffer is free");
    for _ in 0..500 {
        kept.push(take(&prefetcher).unwrap().unwrap());
        assert!(kept.iter().all(|lease| addresses.contains(&lease.address())));
        assert!(kept.iter().all(|lease| lease.iter().all(|&byte| byte == lease.step() as u8)));
        kept.remove(0);
    }
}

#[test]
fn an_error_comes_after_earlier_steps_and_repeats() {
    for threads in [1, 4] {
        let fill = |step, buffer: &mut [u8]| match step {
            20.. => Err(Error::Argument(format!("step {step} is bad"))),
            _ => write_step(step, buffer),
        };
        let prefetcher = Prefetcher::start(options(6, threads, 1000), fill).unwrap();
        for step in 0..20 {
            assert_eq!(take(&prefetcher).unwrap().unwrap().step(), step);
        }
        for _ in 0..3 {
            assert_eq!(take(&prefetcher).unwrap_err().to_string(), "step 20 is bad");
        }
        assert_eq!(prefetcher.step(), 20);
    }
}

#[test]
fn a_panic_in_a_worker_is_an_error() {
    let fill = |step, buffer: &mut [u8]| {
        if step == 2 { panic!("a bug at {step}") } else { write_step(step, buffer) }
    };
    let prefetcher = Prefetcher::start(options(2, 2, 1000), fill).unwrap();
    (0..2).for_each(|_| drop(take(&prefetcher).unwrap().unwrap()));
    let error = take(&prefetcher).unwrap_err();
    let message = "the loader's worker thread failed: a bug at 2";
    assert_eq!((error.code(), error.to_string().as_str()), ("S008", message));
}

#[test]
fn keeping_all_leases_is_an_error() {
    let prefetcher = Prefetcher::start(options(2, 1, 1000), write_step).unwrap();
    let kept: Vec<_> = (0..2).map(|_| take(&prefetcher).unwrap().unwrap()).collect();
    let start = Instant::now();
    let error = take(&prefetcher).unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("S006", "no batch for 0 s: all 2 prefetch buffers are in use")
    );
    assert!(start.elapsed() >= Duration::from_millis(200));
    let mut kept = Some(kept);
    let return_leases = &mut |starved| {
        kept.take_if(|_| starved);
        true
    };
    assert_eq!(prefetcher.next(return_leases).unwrap().unwrap().step(), 2, "it continues when leases are returned");
}

#[test]
fn the_callback_ends_a_wait() {
    let slow = |_, _: &mut [u8]| {
        std::thread::sleep(Duration::from_millis(400));
        Ok(())
    };
    let prefetcher = Prefetcher::start(options(2, 1, 10), slow).unwrap();
    let start = Instant::now();
    assert!(matches!(prefetcher.next(&mut |_| false), Err(Error::Interrupted)));
    assert!(start.elapsed() < Duration::from_millis(300));
    assert_eq!(take(&prefetcher).unwrap().unwrap().step(), 0, "and may continue later");
}

#[test]
fn dropping_joins_the_workers_and_leases_outlive_it() {
    let alive = Arc::new(());
    let captured = alive.clone();
    let fill = move |step, buffer: &mut [u8]| {
        let _ = &captured;
        write_step(step, buffer)
    };
    let prefetcher = Prefetcher::start(options(4, 8, u64::MAX), fill).unwrap();
    let lease = take(&prefetcher).unwrap().unwrap();
    drop(prefetcher);
    assert_eq!(Arc::strong_count(&alive), 1, "no worker is left");
    assert!(lease.iter().all(|&byte| byte == 0));
}

#[test]
fn closing_wakes_a_waiting_consumer() {
    let barrier = Arc::new(Barrier::new(2));
    let worker = barrier.clone();
    let prefetcher = Prefetcher::start(options(1, 1, 10), move |_, _| {
        worker.wait();
        Ok(())
    })
    .unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| take(&prefetcher).map(|lease| lease.is_some()));
        std::thread::sleep(Duration::from_millis(50));
        scope.spawn(|| prefetcher.close());
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(waiting.join().unwrap().unwrap_err().to_string(), "the loader is closed");
        barrier.wait();
    });
}

#[test]
fn invalid_sizes_are_explained() {
    let message = |options| Prefetcher::start(options, write_step).unwrap_err().to_string();
    let valid = options(4, 1, 10);
    assert_eq!(message(Options { slots: 0, ..valid }), "slots = 0; must be 1 or more");
    assert_eq!(message(Options { threads: 0, ..valid }), "threads = 0; must be 1 or more");
    assert_eq!(message(Options { threads: 1 << 40, ..valid }), "threads = 1099511627776; must be 256 or less");
    assert!(message(Options { slots: usize::MAX, ..valid }).starts_with("slots = "));
    assert!(message(Options { block_bytes: usize::MAX / 2, ..valid }).starts_with("4 slots of "));
    assert!(matches!(AlignedBuffer::new(usize::MAX), Err(Error::Memory { .. })));
    assert!(matches!(AlignedBuffer::new(usize::MAX - PAGE), Err(Error::Memory { .. })));
}
