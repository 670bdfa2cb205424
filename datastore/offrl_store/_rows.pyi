from offrl_store._rows_py import RowBuffer as RowBuffer
from offrl_store._rows_py import crc32 as crc32
from offrl_store._rows_py import crc32_rows as crc32_rows
