-- Four tables of a health service, as MariaDB and MySQL 8 both take them. One statement ends with a semicolon at the end
-- of a line.
CREATE TABLE vaccine_batch (
    id            int unsigned NOT NULL PRIMARY KEY,
    batch_number  varchar(16) CHARACTER SET ascii NOT NULL UNIQUE,
    vaccine       varchar(40) NOT NULL,
    manufacturer  varchar(80) NOT NULL,
    gtin          bigint unsigned NOT NULL,
    doses         smallint unsigned NOT NULL,
    received      date NOT NULL,
    expires       date NOT NULL,
    price         decimal(8, 2) NOT NULL,
    lowest_degree decimal(4, 1) NULL,
    storage       enum('fridge', 'freezer', 'ultra-cold') NOT NULL,
    withdrawn     bit(1) NOT NULL,
    note          varchar(200) NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

CREATE TABLE vaccination (
    id           bigint unsigned NOT NULL PRIMARY KEY,
    created      datetime NOT NULL,
    patient_code binary(32) NOT NULL,
    vaccine      varchar(40) NOT NULL,
    dose         tinyint unsigned NOT NULL,
    batch_id     int unsigned NOT NULL,
    facility     varchar(80) NOT NULL,
    given_on     date NOT NULL,
    side         enum('left', 'right') NULL,
    watched_for  time NULL,
    note         varchar(200) NULL,
    KEY vaccination_created (created),
    CONSTRAINT vaccination_batch FOREIGN KEY (batch_id) REFERENCES vaccine_batch (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

CREATE TABLE certificate (
    code      char(27) CHARACTER SET ascii NOT NULL PRIMARY KEY,
    issued    timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    kind      enum('vaccination', 'test', 'recovery') NOT NULL,
    status    enum('valid', 'revoked', 'superseded') NOT NULL,
    revoked   date NULL,
    holder    varchar(120) NOT NULL,
    payload   json NOT NULL,
    signature varbinary(64) NOT NULL,
    KEY certificate_issued (issued)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- Numbers of entries come from a generator of 64 bits without a sign; half of them are above those with one.
CREATE TABLE audit_trail (
    id      bigint unsigned NOT NULL PRIMARY KEY,
    at      datetime(3) NOT NULL,
    actor   varchar(60) NOT NULL,
    action  enum('login', 'view', 'create', 'change', 'print', 'revoke') NOT NULL,
    flags   set('api', 'batch', 'delegated', 'urgent') NOT NULL,
    subject char(27) CHARACTER SET ascii NULL,
    ip      varbinary(16) NULL,
    seconds float NOT NULL,
    details text NULL,
    KEY audit_trail_at (at)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;
