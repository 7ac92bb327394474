"""Reports: read a run folder and write what it shows, as a page, as Markdown and as CSV.

    from hybridize.report import build_report, verdict

    print(verdict("runs/h12"))                 # one sentence
    page = build_report("runs/h12")            # runs/h12/report/index.html

Order of reading: run_data (what is read), models (side by side, the verdict), rows* (the tables),
figures/ (tables -> SVG), sections and compare (what stands where), page, markdown and card.
"""

from hybridize.report.build import build_comparison, build_report
from hybridize.report.card import model_card
from hybridize.report.models import verdict

__all__ = ["build_comparison", "build_report", "model_card", "verdict"]
