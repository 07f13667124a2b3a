"""The steps of models/pt/text.py on small made texts: sources, formats, cleaning, duplicates, a whole run."""

import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from corpus import clean, debian, duplicates, evaluation, extract, sources
from corpus.errors import SourceError

ROOT = Path(__file__).parents[2]
PT = ROOT / "models/pt"
LONG = (
    "Naquela manhã de agosto o barco saiu da vila com a maré e não voltou antes da noite, porque o vento "
    "mudou e os homens ficaram à espera de que o mar acalmasse."
)
OTHER = (
    "A professora abriu a janela da sala, pediu silêncio e contou aos alunos como os avós dela tinham "
    "chegado ao Brasil num navio muito velho, com duas malas e uma viola."
)
SENTENCES = [
    LONG,
    OTHER,
    "Os primos jogavam bola na rua de cima enquanto as mães conversavam sobre o preço do feijão.",
]


def git(folder: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True, env=os.environ | names
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """A folder of sources with the repository someone/livros in it -> (folder, commit)."""
    where = tmp_path / "sources/someone+livros"
    (where / "pt").mkdir(parents=True)
    (where / "pt/b.txt").write_text("\n\n".join(SENTENCES))
    (where / "pt/a.txt").write_text("\n\n".join(reversed(SENTENCES)))
    (where / "pt/nc.txt").write_text(LONG + " CC-BY-NC")
    (where / "README.md").write_text("# Livros\n")
    git(where, "init", "-q")
    git(where, "add", ".")
    git(where, "commit", "-qm", "livros")
    return tmp_path / "sources", git(where, "rev-parse", "HEAD")


def row(commit, **changes):
    known = {"name": "livros", "kind": "literature", "variety": "pt-PT", "era": "old", "licence": "CC0-1.0"}
    known |= {"licence_at": "LICENSE", "format": "lines", "repository": "someone/livros", "commit": commit}
    return sources.Source(**(known | {"paths": ["pt/*.txt"]} | changes))


class TestSources:
    def test_the_chosen_files_come_by_path_from_the_commit_and_not_from_the_work_tree(self, clone):
        folder, commit = clone
        (folder / "someone+livros/pt/a.txt").write_text("changed, not committed")
        found = sources.files(row(commit, without=["pt/nc*"]), folder)
        assert [name for name, _ in found] == ["pt/a.txt", "pt/b.txt"]
        assert found[0][1].decode() == "\n\n".join(reversed(SENTENCES))

    def test_a_clone_that_is_missing_is_fetched_at_its_commit_alone(self, clone, tmp_path):
        folder, commit = clone
        here = sources.Git(tmp_path / "elsewhere/someone+livros")
        assert not here.has(commit)
        here.fetch(str(folder / "someone+livros"), commit)
        assert here.has(commit)
        assert here.names(commit) == ["README.md", "pt/a.txt", "pt/b.txt", "pt/nc.txt"]

    def test_a_file_that_a_partial_clone_lacks_is_an_error_with_its_name(self, clone):
        folder, commit = clone
        blob = git(folder / "someone+livros", "rev-parse", "HEAD:pt/b.txt")
        (folder / f"someone+livros/.git/objects/{blob[:2]}/{blob[2:]}").unlink()
        with pytest.raises(SourceError, match=r"pt/b\.txt of commit \w+ is not in this clone"):
            sources.files(row(commit), folder)

    def test_paths_that_choose_nothing_are_an_error(self, clone):
        folder, commit = clone
        with pytest.raises(SourceError, match="livros: none of its paths is in"):
            sources.files(row(commit, paths=["*.html"]), folder)

    def test_the_hash_tells_a_changed_byte_and_a_changed_name(self):
        pairs = [("a", b"1"), ("b", b"2")]
        assert (
            len({sources.digest(p) for p in (pairs, [("a", b"1"), ("b", b"3")], [("a", b"1"), ("c", b"2")])})
            == 3
        )

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('kind = "poems"', "kind 'poems' is none of"),
            ('kind = "law"\npackages = ["x_1_all.deb"]', "needs repository and commit, or packages"),
            ('kind = "law"\nlicense = "MIT"', "unexpected keyword argument 'license'"),
        ],
    )
    def test_a_wrong_row_of_the_table_is_named(self, tmp_path, line, message):
        table = tmp_path / "sources.toml"
        rest = "".join(
            f'{key} = "x"\n' for key in ("variety", "era", "licence", "licence_at", "format", "repository")
        )
        table.write_text(f'[[source]]\nname = "one"\npaths = []\ncommit = "1"\n{rest}{line}\n')
        with pytest.raises(SourceError, match=f"one: .*{message}"):
            sources.load(table)

    def test_every_row_of_the_table_states_its_licence_and_none_forbids_use(self):
        table = sources.load(PT / "sources.toml")
        assert len({source.name for source in table}) == len(table)
        for source in table:
            assert source.licence_at, source.name
            assert not {"NC", "ND"} & set(source.licence.split("-")), source.name
            assert source.format in extract.READ_TEXT | extract.READ_BYTES, source.name


def package(files: dict[str, bytes]) -> bytes:
    """A Debian package of these files: ar around a data.tar.xz."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo("./" + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": lzma.compress(raw.getvalue()),
    }
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
            + data
            + b"\n" * (len(data) % 2)
        )
    return out


class TestPackages:
    def test_the_files_of_a_package_are_read_without_its_tools(self, tmp_path):
        path = tmp_path / "guia_1%3a2.0_all.deb"
        path.write_bytes(package({"usr/a.txt": b"um", "usr/b.txt": b"dois"}))
        source = row("", repository="", packages=[path.name], paths=["usr/*.txt"], without=["usr/a*"])
        assert sources.files(source, tmp_path) == [("usr/b.txt", b"dois")]

    def test_another_file_is_an_error(self, tmp_path):
        path = tmp_path / "guia_1_all.deb"
        path.write_bytes(b"PK\3\4")
        with pytest.raises(SourceError, match="is no Debian package"):
            list(debian.members(path))


def read(text: str, format: str) -> list[str]:
    return extract.paragraphs(text.encode(), format, "here")


class TestFormats:
    def test_html_leaves_out_menus_code_and_scripts(self):
        page = (
            "<html><head><title>T</title></head><body><nav><p>Início</p></nav><p>Um &amp; dois,<br/>três.</p>"
        )
        page += (
            "<!-- <p>não</p> --><pre><code>x = 1</code></pre><div>Fim <b>agora</b>.</div><script>a<b</script>"
        )
        assert read(page, "html") == ["Um & dois,", "três.", "Fim agora."]

    def test_an_element_in_another_of_its_name_ends_with_the_outer_one(self):
        assert read("<p>a</p><table><tr><td><table>x</table>y</td></tr></table><p>b</p>", "html") == [
            "a",
            "b",
        ]

    def test_tei_keeps_the_text_alone(self):
        page = "<TEI><teiHeader><p>dados</p></teiHeader><text><front><p>capa</p></front><body><head>I</head>"
        page += "<p>Era <hi>uma</hi> vez<note>nota</note>.</p><l>verso</l></body></text></TEI>"
        assert read(page, "tei") == ["I", "Era uma vez.", "verso"]

    def test_a_novel_whose_tags_do_not_pair_reads(self):
        assert read('<p><capítulo "I"> </p>\n<p>Ele veio. </p>\n<l></capitulo></l>', "tei") == ["Ele veio."]

    def test_docbook_writes_words_for_entities_and_leaves_out_code(self):
        page = "<refsect1>&reftitle.x;<para>Retorna &true; em caso de sucesso.</para>"
        page += "<programlisting><![CDATA[<?php f(); ?>]]></programlisting><simpara>Fim.</simpara></refsect1>"
        assert read(page, "docbook") == ["Retorna true em caso de sucesso.", "Fim."]

    def test_markdown_without_code_tables_links_and_front_matter(self):
        page = (
            "---\ntitle: X\n---\n# Olá {/*ola*/}\n\nVeja [aqui](http://x.y) o **grande** `nome` e _isto_.\n\n"
        )
        page += "```js\nlet a\n```\n\n| a | b |\n|---|---|\n\n- um\n- dois\n\n![foto](a.png)\n\n    código\n"
        assert read(page, "markdown") == ["Olá", "Veja aqui o grande nome e isto.", "um", "dois"]

    def test_a_catalogue_gives_translations_and_no_fuzzy_ones(self):
        catalogue = 'msgid ""\nmsgstr ""\n"Language: pt\\n"\n\nmsgid "A"\nmsgstr "Veja :ref:`o guia <x>` "\n'
        catalogue += '"e ``f()``."\n\n#, fuzzy\nmsgid "B"\nmsgstr "Errado"\n\nmsgid "C"\nmsgstr ""\n\n'
        catalogue += 'msgid "D"\nmsgstr "\\"Sim\\""\n'
        assert read(catalogue, "po") == ["Veja o guia e f().", '"Sim"']

    def test_a_compiled_catalogue_gives_the_same(self):
        pairs = [(b"", b"Language: pt\n"), (b"A", "É <i>isso</i>.".encode()), (b"B\0Bs", b"Um.\0Muitos.")]
        start = 28 + 16 * len(pairs)
        tables, strings = [b"", b""], b""
        for side in (0, 1):
            for pair in pairs:
                tables[side] += struct.pack("<2I", len(pair[side]), start + len(strings))
                strings += pair[side] + b"\0"
        head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
        found = extract.paragraphs(head + tables[0] + tables[1] + strings, "mo", "here")
        assert found == ["É isso.", "Um.", "Muitos."]

    def test_the_other_formats(self):
        assert read("# sent_id = 1\n# text = Uma frase.\n1\tUma\n", "conllu") == ["Uma frase."]
        said = 'nome,discurso\nA,"O SR. ANA: – Sim. O SR. RUI LIMA: – Não."\n'
        assert read(said, "speeches") == ["O SR. ANA: – Sim.", "O SR. RUI LIMA: – Não."]
        passages = {"data": [{"paragraphs": [{"context": "Um texto.", "qas": [{"question": "Q?"}]}]}]}
        assert read(json.dumps(passages), "squad") == ["Um texto."]
        assert read("### Gn\n\n[1:1] No princípio.\n[1:2] E a terra.\n[2:1] Assim.\n", "verses") == [
            "No princípio. E a terra.",
            "Assim.",
        ]
        story = "# A lebre\n\nEra uma vez.\n\n##\nFim.\n\n* License: [CC-BY]\n* Text: Ana\n"
        assert read(story, "storybook") == ["A lebre", "Era uma vez.", "Fim."]
        assert read("um\ndois\n\ntrês\n", "lines") == ["um dois", "três"]

    def test_what_does_not_read_is_named(self):
        with pytest.raises(SourceError, match=r"livro\.txt does not read as lines: .*utf-8"):
            extract.paragraphs("não".encode("latin-1"), "lines", "livro.txt")
        with pytest.raises(SourceError, match="format 'pdf' is none of html, tei"):
            extract.paragraphs(b"", "pdf", "livro.pdf")


class TestCleaning:
    def test_characters(self):
        assert clean.tidy("e\u0301  um\u00a0\u00adte\u200bste\x07\n-- Sim") == "é um teste — Sim"
        assert clean.tidy("a opção --verbose") == "a opção --verbose"

    def test_broken_lines_are_joined_and_turns_of_a_dialogue_are_not(self):
        broken = [
            "Ele pendurou em um cabide",
            "velho o chapéu.",
            "— Sim",
            "— Não",
            "Foi ao cora-",
            "ção da vila.",
        ]
        whole = ["Ele pendurou em um cabide velho o chapéu.", "— Sim", "— Não", "Foi ao coração da vila."]
        assert list(clean.unwrap(broken)) == whole

    @pytest.mark.parametrize(
        "text", ["— Sim.", "—Não!", "O que é isso?", "Nos anos de 1550 a 1617, viveu ali."]
    )
    def test_prose(self, text):
        assert clean.is_prose(text)

    @pytest.mark.parametrize(
        "text", ["44", ". . . .", "LDAP_EXOP", "a = b[0] + c(1);", "NÃ£o sei o que Ã© isto", "15.1. Nota"]
    )
    def test_no_prose(self, text):
        assert not clean.is_prose(text)

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("Escreva para ana.silva@exemplo.com.br hoje.", "e-mail"),
            ("O perfil @fulano disse.", "account"),
            ("CPF 123.456.789-09, residente", "CPF or CNPJ"),
            ("Ligue (11) 91234-5678 já", "telephone"),
            ("Ligue para 91234-5678 já", "telephone"),
            ("Tel.: 213 456 789", "telephone"),
            ("+351 912 345 678", "telephone"),
            ("cartão 1234 5678 1234 5678", "card"),
            ("Rua Nova, 12, 01310-100 São Paulo", "postcode"),
        ],
    )
    def test_private_data(self, text, kind):
        assert clean.private(text) == kind

    @pytest.mark.parametrize(
        "text", ["John Napier (1550-1617) viveu", "entre 1939-1945", "R$ 1.234.567,00 em 2020"]
    )
    def test_what_is_not_private(self, text):
        assert clean.private(text) == ""

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (LONG, "pt"),
            ("Esta seção descreve o ambiente de desenvolvimento.", "pt"),
            ("Elle disse que a casa de Antonio era muito longe.", "pt"),
            (
                "Los hombres que salieron de la villa no volvieron hasta la noche con el barco y las redes.",
                "es",
            ),
            ("The men who left the village with the tide did not come back before it was dark.", "en"),
            ("Eu vi.", ""),
        ],
    )
    def test_language(self, text, name):
        assert clean.language(text) == name

    def test_another_language_goes_and_a_short_paragraph_stays_only_in_a_whole_document(self):
        english = "The men who left the village with the tide did not come back before it was dark."
        dropped: Counter[str] = Counter()
        assert clean.clean([LONG, "— Sim.", OTHER], dropped) == [LONG, "— Sim.", OTHER]
        assert clean.clean([LONG, "Click here", english], dropped) == [LONG]
        assert clean.clean([english], dropped) == []
        assert dropped == {"language": 3}


class TestDuplicates:
    def test_exact_and_near_duplicates_go_and_short_turns_stay_where_people_talk(self):
        filter, dropped = duplicates.Filter(duplicates.Runs(), {}), Counter()
        near = LONG.replace("à espera de que o mar acalmasse", "na praia")
        again = [LONG, OTHER, LONG.upper().replace("É", "E"), near, "— Sim.", "— Sim."]
        assert list(filter.fresh(again, dropped, talk=True)) == [LONG, OTHER, "— Sim.", "— Sim."]
        assert dropped == {"exact duplicate": 1, "near duplicate": 1}
        assert list(filter.fresh(["Índice", "— Sim.", "Índice"], dropped, talk=False)) == ["Índice"]

    def test_a_paragraph_that_shares_less_than_half_stays(self):
        filter, dropped = duplicates.Filter(duplicates.Runs(), {}), Counter()
        mixed = " ".join(LONG.split()[:10]) + " " + OTHER
        assert list(filter.fresh([LONG, mixed], dropped, talk=False)) == [LONG, mixed]

    def test_different_runs_have_different_numbers(self):
        runs = duplicates.Runs()
        texts = [" ".join(f"p{(place * step) % 97}" for place in range(90)) for step in range(1, 97)]
        numbers = [number for found in runs.of(texts) for number in set(found)]
        words = {tuple(text.split()[at : at + 8]) for text in texts for at in range(83)}
        assert len(set(numbers)) == len(words)

    def test_a_run_is_the_same_number_wherever_it_stands_and_none_crosses_texts(self):
        runs = duplicates.Runs()
        first, second = runs.of([LONG, "Depois disso, " + LONG])
        assert second[-len(first) :] == first
        assert len(first) == len(duplicates.words(LONG)) - duplicates.RUN + 1
        assert runs.of(["Sim, senhor.", LONG])[1] == first
        assert runs.of(["Sim, senhor."]) == [runs.of([LONG, "sim senhor"])[1]]

    def test_what_an_evaluation_set_holds_goes_with_the_set_and_with_its_list(self, tmp_path):
        (tmp_path / "machado").mkdir()
        (tmp_path / "machado/conto.txt").write_text(LONG.replace(" voltou", "\nvoltou"))
        (tmp_path / "xed.tsv").write_text("positivo\tEu gosto muito de você\n")
        (tmp_path / "qa.jsonl").write_text(json.dumps({"pt": ["O que é o pré-sal do Brasil?"]}) + "\n")
        held_in = "Depois, naquela manhã de agosto o barco saiu da vila com a maré e sumiu."
        line, question = "Eu gosto muito de você.", "O que é o pré-sal do Brasil?"
        runs, dropped = duplicates.Runs(), Counter()
        filter = duplicates.Filter(runs, evaluation.sets(tmp_path, runs))
        assert list(
            filter.fresh([held_in, OTHER, line, question, "Eu gosto muito."], dropped, talk=True)
        ) == [
            OTHER,
            "Eu gosto muito.",
        ]
        assert dropped == {"evaluation": 3}
        assert sorted(filter.taken.values()) == ["machado", "qa.jsonl", "xed.tsv"]
        listed = duplicates.Filter(duplicates.Runs(), None, filter.taken)
        assert list(listed.fresh([held_in, OTHER, line, question], dropped, talk=True)) == [OTHER]


@pytest.fixture
def place(clone, tmp_path):
    """A copy of models/pt whose table has the one made source -> (folder of sources, run)."""
    folder, commit = clone
    here = tmp_path / "pt"
    (here / "corpus").mkdir(parents=True)
    for path in (*PT.glob("*.py"), *PT.glob("README*.md"), *PT.glob("corpus/*.py")):
        (here / path.relative_to(PT)).write_bytes(path.read_bytes())
    made = row(commit, files_without="CC-BY-NC")
    shown = {key: value for key, value in vars(made).items() if value}
    (here / "sources.toml").write_text(
        "[[source]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in shown.items())
    )
    (here / "record.json").write_text('{"text": {"sha256": ""}, "sources": {}}')
    (here / "evaluation.txt").write_text("")
    data = tmp_path / "data"
    data.mkdir()
    (data / "frases.tsv").write_text("1\t" + SENTENCES[2] + "\n")

    def run(*options, held=True, out="out.txt"):
        environ = {key: value for key, value in os.environ.items() if key != "NPGPT_DATA"}
        environ |= {"NPGPT_DATA": str(data)} if held else {}
        command = [sys.executable, here / "text.py", "--sources", folder, "-o", tmp_path / out, *options]
        return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)

    return folder, run, here, tmp_path


class TestWhole:
    def test_a_run_gives_the_recorded_bytes_with_and_without_the_evaluation_sets(self, place):
        _, run, here, tmp_path = place
        assert run("--record").returncode == 0
        first = (tmp_path / "out.txt").read_text()
        assert first == f"{OTHER}\n{LONG}\n<|endoftext|>\n"
        for held in (True, False):
            done = run(held=held, out="again.txt")
            assert (done.returncode, done.stderr) == (0, "")
            assert (tmp_path / "again.txt").read_text() == first
        head, line = (tmp_path / "out.txt.tsv").read_text().splitlines()
        _, path, licence, kind, offset, size = line.split("\t")
        assert (head.split("\t")[0], path, licence, kind) == ("source", "pt/a.txt", "CC0-1.0", "literature")
        assert first.encode()[int(offset) :][: int(size)].decode() == f"{OTHER}\n{LONG}"
        record = json.loads((here / "record.json").read_text())["sources"]["livros"]
        assert record["dropped"] == {"evaluation": 2, "exact duplicate": 2, "licence": 1}
        assert "| livros | literature | pt-PT |" in (here / "README.md").read_text()

    def test_changed_files_are_refused_and_nothing_is_written(self, place):
        _, run, here, tmp_path = place
        assert run("--record").returncode == 0
        (tmp_path / "out.txt").unlink()
        table = (here / "sources.toml").read_text()
        (here / "sources.toml").write_text(table.replace("pt/*.txt", "pt/b.txt"))
        done = run()
        assert done.returncode == 2
        assert "livros: the chosen files have sha256" in done.stderr and done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.glob("out.txt*")] == ["out.txt.tsv"]

    def test_a_list_of_evaluation_paragraphs_that_is_not_whole_is_an_error(self, place):
        _, run, here, _ = place
        assert run("--record").returncode == 0
        (here / "evaluation.txt").write_text("")
        done = run()
        assert (
            done.returncode == 2
            and "evaluation.txt has 0 paragraphs, but NPGPT_DATA takes out 1" in done.stderr
        )

    def test_recording_needs_the_evaluation_sets(self, place):
        _, run, _, _ = place
        done = run("--record", held=False)
        assert done.returncode == 2 and "--record needs NPGPT_DATA" in done.stderr


def test_what_is_recorded_is_the_table_and_names_no_more_than_it():
    record = json.loads((PT / "record.json").read_text())
    table = sources.load(PT / "sources.toml")
    assert list(record["sources"]) == [source.name for source in table]
    kept = sum(
        row["kept"] + row["documents"] * len("\n<|endoftext|>\n") for row in record["sources"].values()
    )
    assert kept == record["text"]["bytes"] >= 60_000_000
    for page in ("README.md", "README.pt-BR.md"):
        assert record["text"]["sha256"] in (PT / page).read_text()
