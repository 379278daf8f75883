"""Annotation files of Pascal VOC."""

CAT = ("cat", (5, 7, 30, 40), 0)


def annotation(objects=(CAT,), name="", size=(64, 48), extra="", inside=""):
    """The text of an XML file."""
    parts = [
        f"<object><name>{label}</name><pose>Left</pose><difficult>{hard}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>{inside}</object>"
        for label, box, hard in objects
    ]
    frame = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>x</folder><filename>{name}</filename>{frame}{extra}{''.join(parts)}</annotation>"
