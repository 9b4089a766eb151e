"""Generated from protos/fewseg/v1 by `make proto`. Do not edit."""
