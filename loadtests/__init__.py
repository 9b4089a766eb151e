"""Open-loop load tests of FewSeg: scenarios, measurements, floors, reports."""
