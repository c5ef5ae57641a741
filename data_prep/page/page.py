"""Make the page about a token folder."""

from data_prep.contamination.overlap import Contamination
from data_prep.manifest import BuiltFolder
from data_prep.page import html
from data_prep.page.corpus import corpus_sections
from data_prep.page.counts import count_tokens
from data_prep.page.samples import draw_sample
from data_prep.page.tokens import token_sections
from data_prep.pool import Pool
from data_prep.progress import Progress
from gpt_dist.data.tokenizers.folder import open_tokenizer


def make_page(
    folder: BuiltFolder,
    contamination: Contamination | None,
    seed: int,
    pool: Pool,
    progress: Progress,
) -> str:
    """Return the page, which is below 500 kB for any corpus.

    Args:
        folder: The token folder.
        contamination: The texts of tests that were found in it.
        seed: Decides the sample.
        pool: The workers that count and decode.
        progress: The display of the stages.

    Raises:
        DataError: The tokenizer or a shard is damaged.
    """
    manifest = folder.manifest
    tokenizer = open_tokenizer(folder.path)
    with progress.stage("counting", "tokens", manifest.totals.tokens) as advance:
        counts = count_tokens(folder, pool, advance)
    sample = draw_sample(folder, seed, pool)
    return html.page(
        f"Token folder {folder.path.resolve().name}",
        [
            *corpus_sections(manifest, contamination),
            *token_sections(manifest, tokenizer, counts, sample),
        ],
    )
