// json-prefix.mjs - is a text a JSON value, the beginning of one, or neither? Read character by character after RFC 8259, without JSON.parse, so
// that an answer that was cut can be judged.

class Short extends Error {} // the text ended where more has to come
class Wrong extends Error {}

const digit = (c) => c >= '0' && c <= '9';

class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  peek() {
    if (this.at >= this.text.length) throw new Short();
    return this.text[this.at];
  }

  wrong(expected) {
    throw new Wrong(`at ${this.at}: found ${JSON.stringify(this.text.slice(this.at, this.at + 10))}, expected ${expected}`);
  }

  take(expected) {
    for (const c of expected) {
      if (this.peek() !== c) this.wrong(`'${expected}'`);
      this.at++;
    }
  }

  space() {
    while (this.at < this.text.length && ' \t\n\r'.includes(this.text[this.at])) this.at++;
  }

  digits() {
    if (!digit(this.peek())) this.wrong('a digit');
    while (this.at < this.text.length && digit(this.text[this.at])) this.at++;
  }

  // A number that ends with the text is whole, though more digits could come.
  number() {
    if (this.peek() === '-') this.at++;
    if (this.peek() === '0') this.at++;
    else this.digits();
    if (this.text[this.at] === '.') {
      this.at++;
      this.digits();
    }
    if (this.text[this.at] === 'e' || this.text[this.at] === 'E') {
      this.at++;
      if ('+-'.includes(this.peek())) this.at++;
      this.digits();
    }
  }

  string() {
    this.take('"');
    for (;;) {
      const c = this.peek();
      if (c < ' ') this.wrong('no control character in a string');
      this.at++;
      if (c === '"') return;
      if (c !== '\\') continue;
      const escape = this.peek();
      if (!'"\\/bfnrtu'.includes(escape)) this.wrong('an escape');
      this.at++;
      for (let i = 0; escape === 'u' && i < 4; i++) {
        if (!/[0-9a-fA-F]/.test(this.peek())) this.wrong('a hexadecimal digit');
        this.at++;
      }
    }
  }

  // What stands between two brackets: items parted by commas.
  list(end, item) {
    this.at++;
    this.space();
    if (this.peek() === end) {
      this.at++;
      return;
    }
    for (;;) {
      this.space();
      item();
      this.space();
      if (this.peek() === end) break;
      this.take(',');
    }
    this.at++;
  }

  value() {
    this.space();
    const c = this.peek();
    if (c === '{') {
      this.list('}', () => {
        this.string();
        this.space();
        this.take(':');
        this.value();
      });
    } else if (c === '[') this.list(']', () => this.value());
    else if (c === '"') this.string();
    else if (c === '-' || digit(c)) this.number();
    else if (c === 't') this.take('true');
    else if (c === 'f') this.take('false');
    else if (c === 'n') this.take('null');
    else this.wrong('a value');
  }
}

// "whole", "prefix", or what is wrong.
export function standing(text) {
  const reader = new Reader(text);
  try {
    reader.value();
    reader.space();
    if (reader.at < text.length) reader.wrong('the end');
    return 'whole';
  } catch (error) {
    if (error instanceof Short) return 'prefix';
    if (error instanceof Wrong) return error.message;
    throw error;
  }
}
