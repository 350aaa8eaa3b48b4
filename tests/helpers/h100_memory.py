"""The memory of train steps, as XLA counts it for a GPU."""

# Arguments and temporaries, in GB, of the train steps that XLA 0.10.2 compiles for an H100 (bench/program.py): config,
# micro-batch, and the remat policies none, attention and blocks.
H100_MEMORY = """
    fineweb40m          8   2.595  2.213  1.419
    fineweb40m         16   3.870  3.104  1.517
    fineweb40m         32   6.405  4.886  1.712
    fineweb40m_modern   8   2.693  2.163  1.408
    fineweb40m_modern  16   4.073  3.013  1.503
    fineweb40m_modern  32   6.832  4.713  1.711
    gpt2_124m           8   5.435  4.675  3.164
    gpt2_124m          16   7.895  6.374  3.353
    gpt2_124m          32  12.815  9.774  3.967
"""
