"""Small files of forms that other programs write."""

import zipfile


def word_file(path, paragraphs):
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    runs = "".join(
        f"<w:p><w:pPr/><w:r><w:t>{p}</w:t></w:r><w:r><w:tab/><w:t>x</w:t></w:r></w:p>" for p in paragraphs
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/_rels/document.xml.rels", "<Relationships/>")
        archive.writestr(
            "word/document.xml",
            f"<?xml version='1.0'?><w:document {space}><w:body>{runs}"
            "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p></w:body></w:document>",
        )


def pdf_file(path, *pages):
    """Write a PDF of these lines of text, one a page; an empty one is a page without text."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for text in pages:
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else "0 0 9 9 re f"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        font = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 600 800]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {font} /Contents {len(objects)} 0 R >>")
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(len(pages)))
    objects[1] = f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>"
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{out.index(b'xref')}\n%%EOF\n"
    path.write_bytes(out + trailer.encode())
