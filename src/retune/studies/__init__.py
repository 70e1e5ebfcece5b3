"""Studies of the theory: the errors of gradient and state over the depth K and the restarts R, and their cost."""

from retune.report.study_page import write_study_page
from retune.studies.options import StudyOptions
from retune.studies.run import study

__all__ = ["StudyOptions", "study", "write_study_page"]
