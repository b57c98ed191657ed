"""The papers behind the methods, as BibTeX."""

from __future__ import annotations

from typing import NamedTuple

from hubprune.presets import METHODS


class Paper(NamedTuple):
    """One paper; ``venue`` is its place of publication, or its number on arXiv."""

    key: str
    title: str
    authors: str
    year: int
    venue: str


_WANDA = Paper(
    "sun2023simple",
    "A Simple and Effective Pruning Approach for Large Language Models",
    "Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico",
    2023,
    "arXiv:2306.11695",
)
PAPERS: dict[str, Paper] = {
    "d-pruner": Paper(
        "zhang2024pruning",
        "Pruning as a Domain-specific LLM Extractor",
        "Zhang, Nan and Liu, Yanchi and Zhao, Xujiang and Cheng, Wei and Bao, Runxue and Zhang, Rui and "
        "Mitra, Prasenjit and Chen, Haifeng",
        2024,
        "arXiv:2405.06275",
    ),
    "wanda": _WANDA,
    "wanda-sp": _WANDA,
    "sparsegpt": Paper(
        "frantar2023sparsegpt",
        "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        "Frantar, Elias and Alistarh, Dan",
        2023,
        "arXiv:2301.00774",
    ),
    "ria": Paper(
        "zhang2024plug",
        "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
        "Zhang, Yingtao and Bai, Haoli and Lin, Haokun and Zhao, Jialin and Hou, Lu and Cannistraci, Carlo Vittorio",
        2024,
        "The Twelfth International Conference on Learning Representations",
    ),
    "gblm": Paper(
        "das2023beyond",
        "Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models",
        "Das, Rocktim Jyoti and Sun, Mingjie and Ma, Liqun and Shen, Zhiqiang",
        2023,
        "arXiv:2311.04902",
    ),
    "cross-calibration": Paper(
        "williams2025compressing",
        "Compressing Language Models for Specialized Domains",
        "Williams, Miles and Chrysostomou, George and Jeronymo, Vitor and Aletras, Nikolaos",
        2025,
        "arXiv:2502.18424",
    ),
    "cus-prun": Paper(
        "zhao2025pruning",
        "Pruning General Large Language Models into Customized Expert Models",
        "Zhao, Yiran and Chen, Guizhen and Kawaguchi, Kenji and Bing, Lidong and Zhang, Wenxuan",
        2025,
        "arXiv:2506.02561",
    ),
    "attribution": Paper(
        "yang2022task",
        "Task-specific Compression for Multi-task Language Models using Attribution-based Pruning",
        "Yang, Nakyeong and Jang, Yunah and Lee, Hwanhee and Jung, Seohyeong and Jung, Kyomin",
        2022,
        "arXiv:2205.04157",
    ),
    "taylor": Paper(
        "ma2023llmpruner",
        "LLM-Pruner: On the Structural Pruning of Large Language Models",
        "Ma, Xinyin and Fang, Gongfan and Wang, Xinchao",
        2023,
        "arXiv:2305.11627",
    ),
    "block-influence": Paper(
        "men2024shortgpt",
        "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        "Men, Xin and Xu, Mingyu and Zhang, Qingyu and Wang, Bingning and Lin, Hongyu and Lu, Yaojie and "
        "Han, Xianpei and Chen, Weipeng",
        2024,
        "arXiv:2403.03853",
    ),
}


def cite(method: str) -> str | None:
    """The BibTeX entry of a method's paper; None for a method without one."""
    paper = PAPERS.get(method)
    if paper is None:
        number = METHODS[method].arxiv if method in METHODS else ""
        return (
            f"@misc{{arxiv{number},\n  howpublished = {{\\url{{https://arxiv.org/abs/{number}}}}}\n}}"
            if number
            else None
        )
    preprint = paper.venue.startswith("arXiv:")
    kind, name = ("article", "journal") if preprint else ("inproceedings", "booktitle")
    fields = {
        "title": f"{{{paper.title}}}",
        "author": paper.authors,
        name: f"arXiv preprint {paper.venue}" if preprint else paper.venue,
        "year": str(paper.year),
    }
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return f"@{kind}{{{paper.key},\n{lines}\n}}"
