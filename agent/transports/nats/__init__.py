"""NATS: ``config`` judges the keys, ``transport`` delivers records, ``consumer`` reads them back. Importing this
package imports none of them.
"""
