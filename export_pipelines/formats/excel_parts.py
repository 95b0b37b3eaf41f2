"""The parts of a workbook beside its rows, as Office Open XML (ECMA-376) has them. Nothing in them is of the moment, so
that the same rows give the same bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from export_pipelines.formats.excel_types import Held

SHEET = "xl/worksheets/sheet1.xml"
SHEET_END = "</sheetData></worksheet>"

_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_NO_TIME = (1980, 1, 1, 0, 0, 0)


class Styles:
    """The styles of cells: 0 is none, 1 that of the header, the others are made as they are asked for."""

    _FORMATS = {Held.DATE: "yyyy-mm-dd", Held.TIME: "yyyy-mm-dd hh:mm:ss", Held.ROUNDED_TIME: "yyyy-mm-dd hh:mm:ss"}

    def __init__(self) -> None:
        self._formats: list[str] = []

    def of(self, held: Held) -> str:
        """The attribute of cells that are held so; empty if they need none."""
        wanted = self._FORMATS.get(held)
        if wanted is None:
            return '"'
        if wanted not in self._formats:
            self._formats.append(wanted)
        return f'" s="{self._formats.index(wanted) + 2}"'

    def xml(self) -> str:
        """The part."""
        formats = "".join(f'<numFmt numFmtId="{164 + n}" formatCode="{f}"/>' for n, f in enumerate(self._formats))
        counted = f'<numFmts count="{len(self._formats)}">{formats}</numFmts>' if formats else ""
        own = "".join(
            f'<xf numFmtId="{164 + n}" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
            for n in range(len(self._formats))
        )
        font = '<sz val="11"/><name val="Calibri"/><family val="2"/>'
        plain = 'numFmtId="0" fontId="0" fillId="0" borderId="0"'
        return (
            f'<styleSheet xmlns="{_MAIN}">{counted}'
            f'<fonts count="2"><font>{font}</font><font><b/>{font}</font></fonts>'
            '<fills count="2"><fill><patternFill patternType="none"/></fill>'
            '<fill><patternFill patternType="gray125"/></fill></fills>'
            '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
            f'<cellStyleXfs count="1"><xf {plain}/></cellStyleXfs>'
            f'<cellXfs count="{len(self._formats) + 2}"><xf {plain} xfId="0"/>'
            f'<xf numFmtId="0" fontId="1" fillId="0" borderId="0" xfId="0" applyFont="1"/>{own}</cellXfs>'
            '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>'
        )


def parts(sheet_name: str, styles: Styles) -> dict[str, str]:
    """All parts but the sheet, by their names."""
    texts = {
        "[Content_Types].xml": (
            f'<Types xmlns="{_PACKAGE}/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Default Extension="xml" ContentType="application/xml"/>'
            f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
            f'<Override PartName="/{SHEET}" ContentType="{_TYPE}.worksheet+xml"/>'
            f'<Override PartName="/xl/styles.xml" ContentType="{_TYPE}.styles+xml"/></Types>'
        ),
        "_rels/.rels": _relations(f"{_OFFICE}/officeDocument", "xl/workbook.xml"),
        "xl/workbook.xml": (
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
            f'<sheet name={quoteattr(sheet_name)} sheetId="1" r:id="rId1"/></sheets></workbook>'
        ),
        "xl/_rels/workbook.xml.rels": _relations(
            f"{_OFFICE}/worksheet", "worksheets/sheet1.xml", f"{_OFFICE}/styles", "styles.xml"
        ),
        "xl/styles.xml": styles.xml(),
    }
    return {name: _XML + text for name, text in texts.items()}


def _relations(*kinds_and_targets: str) -> str:
    pairs = zip(kinds_and_targets[::2], kinds_and_targets[1::2], strict=True)
    each = (f'<Relationship Id="rId{n}" Type="{kind}" Target="{to}"/>' for n, (kind, to) in enumerate(pairs, start=1))
    return f'<Relationships xmlns="{_PACKAGE}/relationships">{"".join(each)}</Relationships>'


def sheet_head(widths: Sequence[int]) -> str:
    """The beginning of the sheet, up to its rows; the header stays in sight."""
    columns = "".join(f'<col min="{n}" max="{n}" width="{w}" customWidth="1"/>' for n, w in enumerate(widths, start=1))
    return (
        f'{_XML}<worksheet xmlns="{_MAIN}"><sheetViews><sheetView workbookViewId="0">'
        '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/></sheetView></sheetViews>'
        f'<sheetFormatPr defaultRowHeight="15"/><cols>{columns}</cols><sheetData>'
    )


def entry(name: str) -> zipfile.ZipInfo:
    """An entry of the ZIP, without a time."""
    info = zipfile.ZipInfo(name, _NO_TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o600 << 16
    return info
