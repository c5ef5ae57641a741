"""Numbers and names that the command line states, apart from the code that is slow to import."""

THRESHOLD = 0.8
"""Share of its words, in runs of eight, from which on a document is a near-duplicate.

Of texts of 100 to 300 words with each word changed at 5 % odds, 0.8 finds 98 %, and 0.9 90 %.
"""

PASSAGE_WORDS = 100
"""Words from which on a repeated passage is cut.

Poems and letters quoted in other books have mostly 50 to 100 words, licences and prefaces more.
"""

MAX_DOCUMENTS = 10
"""The number of documents up to which a gram of a test counts, from GPT-3's appendix C."""

TEST_SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".txt")
"""The suffixes of files of tests."""

DEV_PART = 5
"""One of this many examples of a book task, and one of this many blocks, is for `dev`."""
