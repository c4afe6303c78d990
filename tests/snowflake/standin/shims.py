"""Where fakesnow 0.12.1 departs from Snowflake in what this project uses, and the mending of it.

Each function mends one thing; its docstring says what goes wrong without it and what Snowflake does. `install` applies them all, once
a process, before the server starts.

Not shown here, since DuckDB runs the statements: the scale that Snowflake gives to products and quotients (products keep all digits,
quotients are doubles unless `exact_quotients` knows better), its 38 digits for integers declared bigint or integer, nanoseconds, and
its rule that a failed statement leaves its transaction open. `test_compiled_sql` holds the SQL itself against these.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import duckdb
import fakesnow.arrow as arrow
import fakesnow.macros as macros
import fakesnow.transforms as transforms
import pyarrow as pa
import snowflake.connector.errors as snowflake_errors
import sqlglot
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.transforms.merge import operations as merge_operations
from sqlglot import exp

_COMMENTS = re.compile(r"/\*.*?\*/", re.DOTALL)
_STATEMENT_DONE = "select 'Statement executed successfully.' as status"

# Statements about accounts and sessions, which a single user on loopback has no use for.
_WITHOUT_EFFECT = re.compile(
    r"""\s*(
        alter\s+session\s+(un)?set\b
        | (grant|revoke)\s
        | (create|alter|drop)\s+(or\s+replace\s+)?(role|warehouse|user|resource\s+monitor)\b
        | alter\s+(table|view)\b.*?\balter\b.*?\bcomment\s+\$\$
    )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
# What dbt-snowflake asks before it sets a query tag or grants anything: no tag is set and nobody has been granted anything.
_ANSWERS = [
    (
        re.compile(r"show\s+parameters\s+like\s+'query_tag'", re.IGNORECASE),
        """select 'QUERY_TAG' as "key", '' as "value", '' as "default", '' as "level", '' as "description", """
        """'STRING' as "type" """,
    ),
    (
        re.compile(r"show\s+grants\s+on\b", re.IGNORECASE),
        """select '' as "created_on", '' as "privilege", '' as "granted_on", '' as "name", '' as "granted_to", """
        """'' as "grantee_name", '' as "grant_option", '' as "granted_by" where false""",
    ),
]

_timestamp_struct = arrow.timestamp_to_sf_struct

Execute = Callable[..., FakeSnowflakeCursor]


def _number(precision: int, scale: int) -> exp.DataType:
    return exp.DataType.build(f"decimal({precision}, {scale})", dialect="duckdb")


def exact_sums(expression: exp.Expression) -> exp.Expression:
    """fakesnow sums over TRY_CAST(x AS DOUBLE), which turns money into floats. Snowflake sums NUMBERs as NUMBER(38, s)."""
    return expression


def whole_numbers_of_38_digits(expression: exp.Expression) -> exp.Expression:
    """fakesnow makes a BIGINT of NUMBER(38, 0), which overflows at 19 digits. Snowflake keeps 38, and so does DECIMAL(38, 0).

    The integer types stay BIGINT, whose results the connector reads as int; in Snowflake they are NUMBER(38, 0) as well.
    """
    if isinstance(expression, exp.DataType):
        if expression.this == exp.DType.DECIMAL:
            return expression if expression.expressions else _number(38, 0)
        if expression.this in (exp.DType.INT, exp.DType.SMALLINT, exp.DType.TINYINT):
            return exp.DataType.build("bigint", dialect="duckdb")
    return expression


def trims_of_given_characters(expression: exp.Expression) -> exp.Expression:
    """fakesnow makes TRIM(x) of each LTRIM(x, '.') and RTRIM(x, '0'). Snowflake trims those characters on that side."""
    if isinstance(expression, exp.Trim) and not isinstance(expression.this, exp.Cast):
        expression.set("this", exp.cast(expression.this.copy(), exp.DType.TEXT))
    return expression


def first_match_of_an_expression(expression: exp.Expression) -> exp.Expression:
    """fakesnow's REGEXP_SUBSTR(text, expression) takes the second match where it stands in other functions. Snowflake's the first."""
    if isinstance(expression, exp.RegexpExtract):
        if any(expression.args.get(name) for name in ("position", "occurrence", "parameters")):
            raise NotImplementedError("REGEXP_SUBSTR with more than two arguments")
        match = exp.Anonymous(
            this="regexp_extract", expressions=[expression.this, expression.expression, exp.Literal.number(0)]
        )
        # Without a match DuckDB gives empty text, Snowflake null.
        return exp.Nullif(this=match, expression=exp.Literal.string(""))
    return expression


def exact_quotients(expression: exp.Expression) -> exp.Expression:
    """DuckDB divides decimals as doubles. Snowflake divides them as decimals, and without rounding where nothing remains.

    Known by its form: (a - mod(a, b)) / b, the way to write an exact division in Snowflake, which has no integer division.
    """
    if isinstance(expression, exp.Div):
        dividend = expression.left.unnest()
        divisor = expression.right
        if isinstance(dividend, exp.Sub):
            remainder = dividend.right
            if isinstance(remainder, exp.Mod) and (remainder.left, remainder.right) == (dividend.left, divisor):
                hugeint = exp.DataType.build("hugeint", dialect="duckdb")
                quotient = exp.IntDiv(this=exp.cast(dividend.left, hugeint), expression=exp.cast(divisor, hugeint))
                return exp.Paren(this=exp.cast(quotient, _number(38, 0)))
    return expression


def semantics_of_functions(expression: exp.Expression) -> exp.Expression:
    """Functions that exist on both sides and mean something else."""
    if isinstance(expression, exp.ToChar) and expression.args.get("format") is not None:
        # DuckDB has no TO_CHAR, and fakesnow drops the format.
        return exp.Anonymous(this="strftime", expressions=[expression.this, exp.Literal.string(_strftime(expression))])
    if isinstance(expression, exp.ToNumber) and expression.args.get("format") is not None:
        # fakesnow knows no format. Hexadecimal digits that a BIGINT holds are all that the project reads by one.
        if not re.fullmatch("X{1,15}", expression.args["format"].name):
            raise NotImplementedError(f"TO_NUMBER with the format {expression.args['format'].name!r}")
        digits = exp.func("concat", exp.Literal.string("0x"), expression.this)
        return exp.cast(exp.cast(digits, exp.DataType.build("bigint", dialect="duckdb")), _number(38, 0))
    if isinstance(expression, exp.Cast) and expression.to.this in exp.DataType.TEXT_TYPES:
        if isinstance(expression.this, exp.Anonymous) and expression.this.name == "json_extract":
            # A variant cast to text is its value: text without its quotes, and SQL null for a JSON null.
            return exp.Anonymous(this="json_extract_string", expressions=expression.this.expressions)
        if not isinstance(expression.this, (exp.Literal, exp.Null)) and not isinstance(expression, exp.TryCast):
            # By default Snowflake writes three decimals of a second, DuckDB all of them that are not zero; and of a variant
            # that is text, Snowflake writes the text, DuckDB its JSON.
            return exp.Anonymous(this="_standin_text", expressions=[expression.this.copy()])
    if isinstance(expression, exp.GetExtract):
        # DuckDB reads a name that begins with $ or / as a path.
        name = [exp.Literal.string('$."'), expression.expression, exp.Literal.string('"')]
        return exp.Anonymous(this="json_extract", expressions=[expression.this, exp.func("concat", *name)])
    if isinstance(expression, exp.JSONFormat):
        # Snowflake keeps the members of an object in the order of their names.
        return exp.Anonymous(this="_standin_json_text", expressions=[expression.this])
    if isinstance(expression, exp.Typeof):
        # Of a variant, Snowflake names the JSON type; DuckDB names the SQL type, JSON.
        return exp.Anonymous(this="json_type", expressions=[expression.this])
    if isinstance(expression, exp.GroupConcat) and not isinstance(expression.parent, exp.Coalesce):
        # Snowflake gives empty text for no values, DuckDB null.
        return exp.Coalesce(this=expression.copy(), expressions=[exp.Literal.string("")])
    return expression


def _strftime(expression: exp.ToChar) -> str:
    """A format of TO_CHAR as one of strftime, of the elements that the project uses."""
    elements = {"YYYY": "%Y", "MM": "%m", "DD": "%d", "HH24": "%H", "MI": "%M", "SS": "%S", "FF6": "%f"}
    text = str(expression.args["format"].this)
    written = re.sub("|".join(elements), lambda found: elements[found.group()], text)
    if re.sub("%.", "", written).strip(" -:.T"):
        raise NotImplementedError(f"TO_CHAR with the format {text!r}")
    return written


def _everywhere(expression: exp.Expression, function: Callable[[exp.Expression], exp.Expression]) -> exp.Expression:
    """The expression with each node replaced, the innermost first; sqlglot's own transform leaves out what is in a replaced one."""
    for node in reversed(list(expression.walk())):
        replaced = function(node)
        if replaced is not node:
            if node is expression:
                return replaced
            node.replace(replaced)
    return expression


# DuckDB's casts and JSON functions behave by the type of what they get, which is known only when the statement is bound.
_MACROS = """
    create or replace macro {catalog}._standin_text(x) as (
        case
            when typeof(x) = 'TIMESTAMP' then strftime(try_cast(cast(x as varchar) as timestamp), '%Y-%m-%d %H:%M:%S.%g')
            when typeof(x) = 'JSON' then json_extract_string(to_json(x), '$')
            else cast(x as varchar)
        end
    );
    create or replace macro {catalog}._standin_json_text(x) as (
        case
            when json_type(to_json(x)) = 'OBJECT'
                then '{{' || array_to_string(list_sort(list_transform(
                    json_keys(to_json(x)),
                    lambda name: cast(to_json(name) as varchar) || ':' || cast(
                        json_extract(to_json(x), '/' || replace(replace(name, '~', '~0'), '/', '~1')) as varchar
                    )
                )), ',') || '}}'
            else cast(to_json(x) as varchar)
        end
    );
"""


def temporary_tables_in_a_schema(expression: exp.Expression) -> exp.Expression:
    """DuckDB keeps temporary tables in a catalog of their own and refuses a qualified name. Snowflake has them in the schema.

    They become ordinary tables, which dbt drops or replaces by itself.
    """
    properties = expression.args.get("properties")
    if isinstance(expression, exp.Create) and properties:
        table = expression.find(exp.Table)
        if table is not None and table.args.get("db"):
            kept = [one for one in properties.expressions if not isinstance(one, exp.TemporaryProperty)]
            expression.set("properties", exp.Properties(expressions=kept) if kept else None)
    return expression


def timestamps_that_may_be_null(timestamps: pa.Array | pa.ChunkedArray) -> pa.Array:
    """fakesnow sends a null timestamp as 1970-01-01, having lost which are null. Snowflake sends null."""
    whole = timestamps.combine_chunks() if isinstance(timestamps, pa.ChunkedArray) else timestamps
    known = whole.fill_null(0)
    sent = _timestamp_struct(known)
    return pa.StructArray.from_arrays(
        [sent.field(number) for number in range(sent.type.num_fields)],
        fields=list(sent.type),
        mask=whole.is_null(),
    )


# Kinds of nodes without which a transformation of fakesnow has nothing to do, by its name.
_CONCERNS: dict[str, tuple[type[exp.Expression], ...]] = {
    **dict.fromkeys(
        ("show_columns", "show_databases", "show_functions", "show_keys", "show_parameters", "show_procedures",
         "show_schemas", "show_sequences", "show_stages", "show_tables_etc", "show_users", "show_warehouses"),
        (exp.Show, exp.Command),
    ),
    **dict.fromkeys(
        ("alter_session", "alter_table_strip_cluster_by", "extract_comment_on_columns", "extract_comment_on_table",
         "tag"),
        (exp.Alter, exp.Comment, exp.Command, exp.Create, exp.Drop),
    ),
    **dict.fromkeys(("update_variables",), (exp.Set, exp.Alias, exp.Command)),
    **dict.fromkeys(
        ("create_clone", "create_database", "create_file_format", "create_stage", "create_table_as", "create_user",
         "extract_text_length"),
        (exp.Create, exp.Command),
    ),
    **dict.fromkeys(("list_stage", "put_stage"), (exp.Command, exp.Copy, exp.Put)),
    "array_agg": (exp.ArrayAgg,),
    "array_agg_within_group": (exp.WithinGroup,),
    "array_construct_etc": (exp.Array, exp.ArrayConcat, exp.ArrayConstructCompact),
    "array_size": (exp.ArraySize,),
    "current_version": (exp.CurrentVersion,),
    "drop_schema_cascade": (exp.Drop,),
    "dateadd_date_cast": (exp.DateAdd,),
    "dateadd_string_literal_timestamp_cast": (exp.DateAdd,),
    "datediff_string_literal_timestamp_cast": (exp.DateDiff,),
    "flatten": (exp.Explode,),
    "flatten_value_cast_as_varchar": (exp.Explode,),
    "haversine": (exp.Anonymous,),
    "hex_string": (exp.HexString,),
    "indices_to_json_extract": (exp.Bracket,),
    "json_extract_cased_as_varchar": (exp.JSONExtract,),
    "json_extract_cast_as_varchar": (exp.JSONExtract,),
    "json_extract_precedence": (exp.JSONExtract, exp.JSONExtractScalar),
    "object_agg": (exp.ObjectAgg,),
    "random": (exp.Rand,),
    "regex_replace": (exp.RegexpReplace,),
    "sample": (exp.TableSample,),
    "set_schema": (exp.Use,),
    "split": (exp.Split,),
    "timestamp_offsets": (exp.Literal,),
    "to_decimal": (exp.ToNumber, exp.Anonymous),
    "to_variant": (exp.ToVariant,),
    "values_columns": (exp.Values,),
}  # fmt: skip


class _Statement:
    """A statement on its way through fakesnow's chain of sixty transformations, each of which walks all of it.

    Those that it has nothing for are left out; a large statement takes a fifth of the time.
    """

    def __init__(self, expression: exp.Expression) -> None:
        self.expression = expression
        self._kinds = {type(node) for node in expression.walk()}

    def transform(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> _Statement:
        # Some are wrapped in a lambda that says no more than the name.
        names = {function.__name__, *function.__code__.co_names}
        kinds = next((_CONCERNS[name] for name in names if name in _CONCERNS), None)
        if kinds is None or any(issubclass(kind, kinds) for kind in self._kinds):
            self.expression = self.expression.transform(function, *arguments, **options)
        return self


def column_types(cursor: FakeSnowflakeCursor) -> list[tuple[Any, ...]]:
    """fakesnow describes a result by parsing and planning its statement once more. DuckDB has told what it returned."""
    return [(column[0], str(column[1]), None, None, None, None) for column in cursor._duck_conn.description or ()]


def _merge(cursor: FakeSnowflakeCursor, merge: exp.Merge, params: Any, execute: Callable[..., None]) -> None:
    """fakesnow splits MERGE into a join kept in a temporary table and one statement a branch.

    That fails on unqualified columns of an INSERT and inside a transaction, and does not notice a row that matches twice. DuckDB's own
    MERGE does all three as Snowflake does. The counts are returned as Snowflake returns them.
    """
    for when in merge.find_all(exp.When):
        then = when.args.get("then")
        if isinstance(then, exp.Update):
            for assignment in then.expressions:
                if isinstance(assignment.this, exp.Column):
                    assignment.this.set("table", None)
    rows = cursor._duck_conn.execute(f"{merge.sql(dialect='duckdb')} returning merge_action", params).fetchall()
    done = [row[0] for row in rows]
    counts = {"inserted": done.count("INSERT"), "updated": done.count("UPDATE"), "deleted": done.count("DELETE")}
    columns = ", ".join(
        f'{counts[operation]} as "number of rows {operation}"'
        for operation, branches in merge_operations(merge).items()
        if branches
    )
    execute(cursor, sqlglot.parse_one(f"select {columns}", read="duckdb"))
    cursor._rowcount = len(done)


def without_session_variables(cursor: FakeSnowflakeCursor, command: str) -> str:
    """fakesnow replaces $name inside of text too. Snowflake does not; this project sets no variables, so nothing is replaced."""
    return command


def _without_comments(command: str) -> str:
    return _COMMENTS.sub("", command)


def _run(cursor: FakeSnowflakeCursor, execute: Execute, command: str, arguments: Any, options: Any) -> Any:
    """Run a statement; whatever DuckDB raises becomes an error of the kind that Snowflake returns.

    fakesnow answers some errors with HTTP 500, which the connector retries for minutes, and leaves DuckDB's transaction aborted, in
    which every later statement fails the same way. Snowflake returns an error and leaves the transaction open without the failed
    statement; here it is rolled back as a whole.
    """
    try:
        return execute(cursor, command, *arguments, **options)
    except Exception as error:
        # Outside of a transaction there is nothing to roll back, which DuckDB says by an error.
        with contextlib.suppress(duckdb.Error):
            cursor._duck_conn.execute("rollback")
        cursor._conn._in_transaction = False
        if isinstance(error, snowflake_errors.Error):
            raise
        cursor._sqlstate = "42000"
        raise snowflake_errors.ProgrammingError(
            msg=f"{type(error).__name__}: {error}", errno=100000, sqlstate="42000"
        ) from error


def install() -> None:
    """Mend fakesnow in this process. A second call changes nothing."""
    if getattr(FakeSnowflakeCursor, "_mended", False):
        return
    transform = FakeSnowflakeCursor._transform
    execute_transformed = FakeSnowflakeCursor._execute
    execute = FakeSnowflakeCursor.execute
    fakesnow_macros = macros.creation_sql

    def mended_transform(self: FakeSnowflakeCursor, expression: exp.Expression, params: Any) -> exp.Expression:
        expression = temporary_tables_in_a_schema(expression)
        expression = _everywhere(_everywhere(expression, exact_quotients), semantics_of_functions)
        return transform(self, _Statement(expression), params).expression

    def mended_execute_transformed(self: FakeSnowflakeCursor, transformed: exp.Expression, params: Any = None) -> None:
        if isinstance(transformed, exp.Merge):
            _merge(self, transformed, params, execute_transformed)
        else:
            execute_transformed(self, transformed, params)

    def mended_execute(self: FakeSnowflakeCursor, command: str, *arguments: Any, **options: Any) -> Any:
        bare = _without_comments(command)
        for question, answer in _ANSWERS:
            if question.search(bare):
                command = answer
        if _WITHOUT_EFFECT.match(bare):
            return _run(self, execute, _STATEMENT_DONE, (), {"server": True})
        return _run(self, execute, command, arguments, options)

    def macros_of_a_database(catalog: str) -> str:
        return fakesnow_macros(catalog) + _MACROS.format(catalog=catalog)

    macros.creation_sql = macros_of_a_database
    transforms.numeric_agg_implicit_cast = exact_sums
    transforms.trim_cast_varchar = trims_of_given_characters
    transforms.regex_substr = first_match_of_an_expression
    transforms.integer_precision = whole_numbers_of_38_digits
    arrow.timestamp_to_sf_struct = timestamps_that_may_be_null
    transforms.merge = lambda expression: [expression]
    FakeSnowflakeCursor._describe_last_sql = column_types
    FakeSnowflakeCursor._inline_variables = without_session_variables
    FakeSnowflakeCursor._transform = mended_transform
    FakeSnowflakeCursor._execute = mended_execute_transformed
    FakeSnowflakeCursor.execute = mended_execute
    FakeSnowflakeCursor._mended = True
