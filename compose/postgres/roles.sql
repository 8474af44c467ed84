-- Run once, as the administrator, when the volume is new.
\set password `cat /run/secrets/password`
CREATE ROLE batchscore LOGIN PASSWORD :'password';
CREATE ROLE dashboards LOGIN PASSWORD :'password';
-- It owns what it makes; sql/grants/readers.sql then lets the dashboards read.
CREATE DATABASE warehouse OWNER batchscore;
