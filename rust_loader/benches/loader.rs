//! `cargo bench -p jaxgpt-loader`: one thread, warm page cache.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jaxgpt_loader::order::batch::Batches;
use jaxgpt_loader::order::permute::permute;
use jaxgpt_loader::order::{Geometry, Order};
use jaxgpt_loader::prefetch::aligned::AlignedBuffer;
use jaxgpt_loader::shard::format::Dtype;
use jaxgpt_loader::shard::verify::{Options, verify};
use jaxgpt_loader::shard::writer::Writer;
use jaxgpt_loader::shard::{Dataset, Headerless};

const TOKENS: u64 = 50_000_000;
/// The step of nanoGPT's GPT-2 124M, as on eight GPUs: 524,288 tokens.
const STEP: Geometry = Geometry { block: 1024, micro_batch: 16, accum: 32, rank: 0, world: 1 };

fn dataset(folder: &tempfile::TempDir) -> Arc<Dataset> {
    let path = folder.path().join("000.bin");
    let mut writer = Writer::create(&path, Dtype::U16, false).unwrap();
    let tokens: Vec<u8> = (0..TOKENS).flat_map(|index| ((index * 40_503 % 50_257) as u16).to_le_bytes()).collect();
    writer.append(&tokens).unwrap();
    writer.finish().unwrap();
    Arc::new(Dataset::open(&[path], Headerless::Auto).unwrap())
}

fn fill(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder);
    let mut group = criterion.benchmark_group("fill one step of 524,288 tokens");
    group.throughput(Throughput::Elements(STEP.samples_per_step() * STEP.block));
    for order in [Order::Epoch, Order::Random, Order::Sequential] {
        let batches = Batches::new(dataset.clone(), order, 0, STEP, Some(50_257)).unwrap();
        let mut buffer = AlignedBuffer::new(batches.block_bytes().unwrap()).unwrap();
        let mut step = 0;
        group.bench_function(format!("{order:?}"), |bencher| {
            bencher.iter(|| {
                batches.fill(step, &mut buffer).unwrap();
                step += 1;
            });
        });
    }
}

fn shuffle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("permute");
    for n in [1_000, 10_000_000] {
        let mut index = 0;
        group.bench_function(format!("one of {n}"), |bencher| {
            bencher.iter(|| {
                index = (index + 1) % n;
                black_box(permute(index, n, 1, 2))
            });
        });
    }
}

fn verification(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder);
    let options = Options { vocab_size: Some(50_257), checksums: None, threads: 1 };
    let mut group = criterion.benchmark_group("verify");
    group.throughput(Throughput::Bytes(dataset.shards()[0].bytes())).sample_size(10);
    group.bench_function("one shard", |bencher| {
        bencher.iter(|| verify(&dataset, &options, &mut |_| true).unwrap());
    });
}

criterion_group!(benches, fill, shuffle, verification);
criterion_main!(benches);
