package account

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// encodeRecord prints a record as a file. Only what can be read again is
// printed.
func encodeRecord(c *Client) ([]byte, error) {
	fields := c.Fields()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(fields); err != nil {
		return nil, err
	}
	if b.Len() > maxRecordBytes {
		return nil, fmt.Errorf("the record has %d octets: at most %d", b.Len(), maxRecordBytes)
	}
	again, err := decodeRecord(b.Bytes())
	if err == nil {
		_, err = Decode(c.Name, "", again)
	}
	return b.Bytes(), err
}

// decodeRecord reads JSON, and refuses what encoding/json lets through: a name
// that stands twice in an object, of which the last would count, and text
// behind the end.
func decodeRecord(data []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	value, err := jsonValue(d, maxRecordDepth)
	if err != nil {
		return nil, jsonFault(data, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, Faults{{Text: "has something behind its end: leave one JSON object"}}
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return nil, Faults{{Text: "is " + describe(value) + ": want a JSON object"}}
	}
	return fields, nil
}

func jsonValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth == 0 {
		return nil, Faults{{Text: fmt.Sprintf("is nested more than %d deep", maxRecordDepth)}}
	}
	if delim == '[' {
		list := []any{}
		for d.More() {
			entry, err := jsonValue(d, depth-1)
			if err != nil {
				return nil, err
			}
			list = append(list, entry)
		}
		_, err = d.Token()
		return list, err
	}
	fields := make(map[string]any)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string)
		if _, is := fields[name]; is {
			return nil, Faults{{Field: brief(name), Text: "stands there twice: remove one"}}
		}
		if fields[name], err = jsonValue(d, depth-1); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return fields, err
}

// jsonFault says where JSON ends to be JSON.
func jsonFault(data []byte, err error) error {
	if faults, ok := errors.AsType[Faults](err); ok {
		return faults
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		return Faults{{Text: fmt.Sprintf("is not JSON: line %d: %s", line, syntax)}}
	}
	return Faults{{Text: "is not JSON: it ends too early"}}
}
